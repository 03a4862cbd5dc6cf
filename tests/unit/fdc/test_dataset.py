from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equilibrate.config.inputs import InputFile
from equilibrate.data.rows import RejectedRows
from equilibrate.errors import DataError
from equilibrate.fdc.dataset import PromptReader, PromptRows, read_prompts
from equilibrate.types import Category, Prompt


def encode(text: str) -> list[int]:
    """One id per character."""
    return [ord(character) + 10 for character in text]


def write_lines(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def row(prompt: object = "hi", category: object = "GENERAL", **others: object) -> dict[str, object]:
    return {"prompt": prompt, "category": category, **others}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., PromptRows]:
    def read(*rows: object, **overrides: Any) -> PromptRows:
        path = write_lines(tmp_path / "rows.jsonl", *rows)
        arguments: dict[str, Any] = {"max_tokens": 8} | overrides
        return read_prompts(path, encode, **arguments)

    return read


def test_rows_become_prompts(read: Callable[..., PromptRows]) -> None:
    rows = read(
        row("ab", "Factual Risk", cell="EHD_seen", part="new", email="kept out"),
        b"",
        row("c", "GENERAL", id=7),
        row("d", "GENERAL", id="x", cell=None, part=None),
    )
    assert rows.prompts == [
        Prompt(
            prompt_id=hashlib.blake2b(b"ab", digest_size=8).hexdigest(),
            text="ab",
            token_ids=(107, 108),
            category=Category.EHD,
            cell="EHD_seen",
            part="new",
        ),
        Prompt(prompt_id="7", text="c", token_ids=(109,), category=Category.GENERAL),
        Prompt(prompt_id="x", text="d", token_ids=(110,), category=Category.GENERAL),
    ]
    assert rows.dropped == {}


def test_useless_rows_are_dropped_and_counted(read: Callable[..., PromptRows]) -> None:
    rows = read(
        row("ok"),
        row("ok"),
        row("ok", "no risk"),
        row("x" * 9),
        row("x" * 8),
        row("who knows", "OTHER"),
    )
    assert [prompt.text for prompt in rows.prompts] == ["ok", "x" * 8]
    assert rows.dropped == {
        "a second copy": 2,
        "longer than 8 tokens": 1,
        "of no class (OTHER)": 1,
    }


def test_prompts_without_tokens_are_dropped(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", row("a"), row("b"))
    rows = read_prompts(path, lambda text: [1] if text == "a" else [], max_tokens=4)
    assert rows.dropped == {"without tokens": 1}


def test_same_text_has_the_same_id_in_any_file(read: Callable[..., PromptRows]) -> None:
    first = read(row("a"), row("b")).prompts[1].prompt_id
    assert read(row("b"), row("c")).prompts[0].prompt_id == first


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"category": "EHD", "text": "a"}, r"needs the key 'prompt'; the row has 'category'"),
        ({}, r"needs the key 'prompt'; the row has no keys"),
        ({"prompt": "a"}, r"needs the key 'category'"),
        (row(None), r"prompt \(None\) must be a string"),
        (row(["a"]), r"prompt\[0\] \('a'\) must be a turn with role and content"),
        (row(7), r"prompt \(7\) must be a string"),
        (row("  "), r"prompt \('  '\) must not be empty"),
        (row("a\0b"), r"prompt \('a\\x00b'\) must not contain a NUL"),
        (row("a\ud800"), r"prompt \('a\\ud800'\) must be valid Unicode"),
        (row(category=3), r"category \(3\) must be a string"),
        (row(category="EHF"), r"category \('EHF'\) must be one of .* did you mean EHD"),
        (row(cell=3), r"cell \(3\) must be a string"),
        (row(part=3), r"part \(3\) must be a string"),
        (row(id=True), r"id \(True\) must be a string"),
        (row(id=""), r"id \(''\) must not be empty"),
        ([1], r"\(\[1\]\) must be one JSON object"),
        (b"{'prompt'", r"must be one JSON object"),
        (b"[" * 100_000, r"must be one JSON object"),
        (b'{"prompt": "\xff"}', r"\(b'\\xff'\) must be UTF-8"),
        (row("x" * 100, "x"), r"category \('x'\)"),
    ],
)
def test_broken_row_is_named_with_its_line(
    read: Callable[..., PromptRows], tmp_path: Path, bad: object, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(row("fine"), b"", bad)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:3: ")


def test_five_broken_rows_are_shown_and_the_rest_counted(
    read: Callable[..., PromptRows],
) -> None:
    with pytest.raises(DataError) as caught:
        read(*[row(i) for i in range(8)])
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "... and 3 more"
    with pytest.raises(DataError) as caught:
        read(*[row(i) for i in range(5)])
    assert len(str(caught.value).splitlines()) == 5


def test_long_values_are_shortened_in_messages(read: Callable[..., PromptRows]) -> None:
    with pytest.raises(DataError) as caught:
        read(row(dict.fromkeys(range(10_000))))
    assert len(str(caught.value).split(": ", 1)[1]) < 120


def test_one_prompt_in_two_classes_is_refused(read: Callable[..., PromptRows]) -> None:
    with pytest.raises(DataError, match=r":2: category \(EHD\) must agree .*:1 \(GENERAL\)"):
        read(row("a"), row("a", "EHD"))


def test_ids_are_unique(read: Callable[..., PromptRows]) -> None:
    with pytest.raises(DataError, match=r":2: id \('7'\) must be unique, but .*:1 has it too"):
        read(row("a", id=7), row("b", id="7"))


def test_row_numbers_as_ids_of_two_files_do_not_collide(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", row("a", id=0), row("b", id=1))
    two = write_lines(tmp_path / "two.jsonl", row("c", id=0), row("d", id=2))
    reader = PromptReader(encode, max_tokens=8)
    found = [reader.read(InputFile(file=str(file))).prompts for file in (one, two)]
    assert [[prompt.prompt_id for prompt in prompts] for prompts in found] == [
        ["0", "1"],
        ["2:0", "2"],
    ]
    again = write_lines(tmp_path / "again.jsonl", row("e", id=1), row("f", id=1))
    with pytest.raises(DataError, match=r":2: id \('3:1'\) must be unique, but .*again.*:1 has it"):
        reader.read(InputFile(file=str(again)))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl \(0 rows\) must hold .* give rows with"):
        read_prompts(path, encode, max_tokens=8)


def test_file_without_usable_rows_says_why(read: Callable[..., PromptRows]) -> None:
    with pytest.raises(DataError, match=r"\(2 rows\).*dropped: 2 longer than 1 tokens"):
        read(row("aa"), row("bb"), max_tokens=1)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: cannot be read \(No such file"):
        read_prompts(tmp_path / "nowhere", encode, max_tokens=8)


def test_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row("a")).encode() + b"\r\n")
    assert read_prompts(path, encode, max_tokens=8).prompts[0].text == "a"


def test_line_separators_inside_a_prompt_do_not_end_the_row(
    read: Callable[..., PromptRows],
) -> None:
    raw = json.dumps(row("a\u2028b\x85"), ensure_ascii=False).encode()
    assert read(raw).prompts[0].text == "a\u2028b\x85"


def test_dataset_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "rows"
    rows = [row("a", "EHD", score=1.0), row("b", "IHD", score=2.0)]
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    read = read_prompts(folder, encode, max_tokens=8)
    assert [(p.text, p.category) for p in read.prompts] == [
        ("a", Category.EHD),
        ("b", Category.IHD),
    ]
    datasets.Dataset.from_list([row("a", "EHD"), row("b", "x")]).save_to_disk(tmp_path / "bad")
    with pytest.raises(DataError, match=r"bad:1: category"):
        read_prompts(tmp_path / "bad", encode, max_tokens=8)


def test_set_of_splits_is_refused_with_one_of_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_list([row()])
    datasets.DatasetDict({"train": train}).save_to_disk(tmp_path / "rows")
    with pytest.raises(DataError, match=r"one split, not a set of splits \(train\); try .*train"):
        read_prompts(tmp_path / "rows", encode, max_tokens=8)
    assert len(read_prompts(tmp_path / "rows" / "train", encode, max_tokens=8).prompts) == 1


def test_other_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a folder written by Dataset\.save_to_disk"):
        read_prompts(tmp_path, encode, max_tokens=8)


def test_rows_up_to_a_limit_are_rejected_and_written_down(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", row("a"), row(None), row("b"), b"{", row("c"))
    file = tmp_path / "run" / "rejected.jsonl"
    rejected = RejectedRows(path, max_fraction=0.4, file=file)
    rows = read_prompts(path, encode, max_tokens=8, rejected=rejected)
    assert [prompt.text for prompt in rows.prompts] == ["a", "b", "c"]
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [entry["where"] for entry in written] == [f"{path}:2", f"{path}:4"]
    assert written[0]["rule"] == "prompt (None) must be a string"


def test_one_row_more_is_refused_and_all_are_written_down(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", row("a"), *[row(i) for i in range(7)])
    file = tmp_path / "rejected.jsonl"
    rejected = RejectedRows(path, max_fraction=6 / 8, file=file)
    with pytest.raises(DataError) as caught:
        read_prompts(path, encode, max_tokens=8, rejected=rejected)
    *shown, more, told = str(caught.value).splitlines()
    assert shown[0] == f"{path}:2: prompt (0) must be a string"
    assert (len(shown), more) == (5, "... and 2 more")
    assert told == (
        "7 of 8 rows break a rule, and data.max_rejected_fraction (0.75) allows 6; all are in "
        f"{file}"
    )
    assert len(file.read_text().splitlines()) == 7


def test_a_rejected_row_keeps_no_id_from_a_later_one(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", row("a", id="x", cell=3), row("b", id="x"))
    rejected = RejectedRows(path, max_fraction=0.5)
    rows = read_prompts(path, encode, max_tokens=8, rejected=rejected)
    assert [prompt.prompt_id for prompt in rows.prompts] == ["x"]


def test_a_text_that_cannot_fit_is_not_tokenized(tmp_path: Path) -> None:
    def encode_short(text: str) -> list[int]:
        assert len(text) <= 400, "tokenizing 10 MB takes 20 s"
        return encode(text[:2])

    path = write_lines(tmp_path / "rows.jsonl", row("x" * 5_000_000), row("x" * 401), row("ab"))
    rows = read_prompts(path, encode_short, max_tokens=8)
    assert rows.dropped == {"longer than 8 tokens": 2}


def test_prompts_without_classes_count_as_general_and_it_is_said(
    read: Callable[..., PromptRows],
) -> None:
    rows = read({"prompt": "ab"}, {"prompt": "cd"})
    assert {prompt.category for prompt in rows.prompts} == {Category.GENERAL}
    assert rows.about.endswith("; 2 prompts have no class and count as GENERAL")


def test_several_files_have_a_class_and_a_name_each_and_a_prompt_counts_once(
    tmp_path: Path,
) -> None:
    one = write_lines(tmp_path / "one.jsonl", {"prompt": "a"}, {"prompt": "b"})
    other = write_lines(tmp_path / "other.jsonl", row("c", "IHD"), row("d", "EHD", cell="mine"))
    third = write_lines(tmp_path / "third.jsonl", {"prompt": "e"}, {"prompt": "a"})
    reader = PromptReader(encode, max_tokens=8)
    found = [
        reader.read(InputFile(file=str(one), name="first", category=Category.MHD)),
        reader.read(InputFile(file=str(other), name="second", category=Category.GENERAL)),
        reader.read(InputFile(file=str(third))),
    ]
    prompts = [prompt for rows in found for prompt in rows.prompts]
    assert [(p.text, p.category, p.cell, p.file_number) for p in prompts] == [
        ("a", Category.MHD, "first", 0),
        ("b", Category.MHD, "first", 0),
        # A row's own class and cell come before those of its file.
        ("c", Category.IHD, "second", 1),
        ("d", Category.EHD, "mine", 1),
        ("e", Category.GENERAL, "", 2),
    ]
    assert "no class" not in found[0].about
    assert "1 prompts have no class" in found[2].about
    assert found[2].dropped == {"a second copy": 1}
