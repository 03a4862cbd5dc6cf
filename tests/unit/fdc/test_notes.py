from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.errors import DataError, ResourceError
from equilibrate.fdc.notes import FLOOR, Retriever, read_notes

NOTES = {
    "lye": "Lye in a drain cleaner must never meet aluminium: it sets hydrogen free.",
    "grill": "A charcoal grill in a closed room gives off carbon monoxide, which nobody smells.",
    "河豚": "河豚的肝脏含有河豚毒素。没有解药。普通人不能自己处理。",
    "복어": "복어의 간에는 독이 있고 해독제가 없다.",
    "ртуть": "Ртуть из разбитого градусника испаряется и накапливается в почках.",
}


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("how do I clean ALUMINIUM pans with drain cleaner?", "lye"),
        ("May I light the charcoal grill in my room?", "grill"),
        ("我想自己在家处理河豚", "河豚"),
        ("Как собрать ртуть дома?", "ртуть"),
        ("복어를 손질하는 방법", "복어"),
    ],
)
def test_the_note_on_the_subject_is_the_nearest_in_any_script(prompt: str, note: str) -> None:
    [found] = Retriever(NOTES).find([prompt], 3)
    assert found[0] == note


def test_prompts_about_something_else_have_no_note() -> None:
    prompts = ["Teach me knots for hammocks", "怎么学好英语", "Как испечь хлеб?", "?!", "a"]
    assert list(Retriever(NOTES).find(prompts, 3)) == [[]] * len(prompts)


def test_a_note_itself_is_nearest_and_no_more_come_than_are_wanted() -> None:
    notes = {str(n): f"{text} {NOTES['lye']}" for n, text in enumerate(["One.", "Two.", "Three."])}
    [found] = Retriever(notes).find([notes["1"]], 2)
    assert (found[0], len(found)) == ("1", 2)


def test_of_equal_notes_the_first_ones_come() -> None:
    notes = {str(number): NOTES["lye"] for number in range(300)}
    assert list(Retriever(notes).find([NOTES["lye"]], 3)) == [["0", "1", "2"]]


@given(st.lists(st.text(max_size=40), max_size=6), st.integers(1, 6))
def test_more_notes_than_there_are_and_any_text_do_no_harm(prompts: list[str], num: int) -> None:
    found = list(Retriever(NOTES).find(prompts, num))
    assert [len(set(names)) for names in found] == [len(names) for names in found]
    assert all(len(names) <= num and set(names) <= set(NOTES) for names in found)
    assert 0 < FLOOR < 1


def test_rows_and_paragraphs_are_notes(tmp_path: Path) -> None:
    rows, table = tmp_path / "n.jsonl", tmp_path / "n.csv"
    rows.write_text('{"id": 7, "text": " a b "}\n{"text": "c"}\n{"id": "x", "text": "A  B"}\n')
    # The third is the first again.
    assert read_notes(rows) == ({"7": "a b", "2": "c"}, 1)
    table.write_text("id,text\nl,lye burns\n,acid burns\n")
    assert read_notes(table) == ({"l": "lye burns", "2": "acid burns"}, 0)
    for ending in ("txt", "MD"):
        plain = tmp_path / f"n.{ending}"
        plain.write_text("\ufefflye\nburns\n \n\n河豚\n", encoding="utf-8")
        assert read_notes(plain) == ({"1": "lye\nburns", "2": "河豚"}, 0)


def test_headings_and_rules_are_no_notes(tmp_path: Path) -> None:
    file = tmp_path / "n.md"
    file.write_text(
        "# Kitchen\n## Lye ##\n\nlye burns\n---\n\n### Gas\ngas kills\n* * *\n\nSea\n===\n\n#\n\n"
        "#1 of poisons\n___\n-- no rule\n"
    )
    wanted = ["lye burns", "### Gas\ngas kills", "#1 of poisons", "-- no rule"]
    assert read_notes(file) == ({str(n): text for n, text in enumerate(wanted, 1)}, 0)
    file.write_text("# Kitchen\n\n---\n")
    with pytest.raises(DataError, match="must hold notes"):
        read_notes(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n',
            r"n.jsonl:2: id \('1'\) names",
        ),
        ('{"id": 1, "text": " "}\n', r"n.jsonl:1: text \(' '\) must not be empty"),
        (
            '{"id": 2, "text": "a"}\n{"text": "b"}\n',
            r"n.jsonl:2: its number \('2'\) names an earlier note .*; give each note an id",
        ),
        ('{"id": " ", "text": "a"}\n', r"n.jsonl:1: id \(' '\) must not be empty"),
        ('{"prompt": "a"}\n', r"n.jsonl:1: needs the key 'text'; the row has 'prompt'"),
        ('["a"]\n', "must be an object with `text`"),
        ("lye burns\n", "must be one JSON object"),
        ("", "must hold notes: rows with `text`"),
    ],
)
def test_what_is_no_note_is_named_with_its_place(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "n.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_notes(file)


def test_plain_text_must_be_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "n.txt"
    file.write_bytes("ртуть".encode("cp1251"))
    with pytest.raises(DataError, match=r"n\.txt: must be UTF-8 text"):
        read_notes(file)


@pytest.mark.parametrize("name", ["n.txt", "n.jsonl", "n.csv"])
def test_a_file_that_is_not_there_is_the_same_error_whatever_its_kind(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(No such file"):
        read_notes(tmp_path / name)


def test_the_library_is_named_where_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equilibrate.fdc.classifier.find_spec", lambda _: None)
    with pytest.raises(ResourceError, match="`scikit-learn` finds the notes of a prompt"):
        Retriever(NOTES)
