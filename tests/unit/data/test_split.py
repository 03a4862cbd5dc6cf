"""One split over all data sets: by prompt, whichever file holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibrate.data.records import Kind, Record
from equilibrate.data.split import file_of, part_of, parts_of, split
from equilibrate.errors import ConfigError, DataError
from equilibrate.types import Category, as_conversation

PARTS = {"train": 0.5, "test": 0.5}


def _write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _split(out: Path, *files: str, shape: str = "answers", parts: dict[str, float] = PARTS, **more):
    lines: list[str] = []
    options = {"seed": 0, "columns": {}, "max_rejected_fraction": 0.0} | more
    split([file_of(file) for file in files], parts, out, shape=shape, say=lines.append, **options)
    return lines


def _read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _pair(prompt: str, first: tuple[str, bool], other: tuple[str, bool], **more: object):
    return {
        "prompt": prompt,
        "response_0": first[0],
        "response_1": other[0],
        "is_response_0_safe": first[1],
        "is_response_1_safe": other[1],
        "better_response_id": 0,
        "safer_response_id": 1,
    } | more


def _single(prompt: str, response: str, is_safe: bool) -> dict[str, object]:
    return {"prompt": prompt, "response": response, "is_safe": is_safe, "category": "{}"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """20 prompts as pairs, and 10 of them, in capitals and with a full stop, as single answers."""
    pairs = [
        _pair(f"how to do {word}", ("a", False), ("b", True)) for word in "abcdefghijklmnopqrst"
    ]
    singles = [_single(f"How to  do {word.upper()}.", "c", True) for word in "abcdefghij"]
    return _write(tmp_path / "pairs.jsonl", pairs), _write(tmp_path / "singles.jsonl", singles)


def test_no_prompt_is_in_two_parts_whatever_its_case_spacing_and_punctuation(
    files: tuple[str, str], tmp_path: Path
) -> None:
    _split(tmp_path / "out", *files)

    train, test = (
        {
            row["prompt"].casefold().strip(".").replace("  ", " ")
            for row in _read(tmp_path / "out" / f"{name}.jsonl")
        }
        for name in PARTS
    )
    assert train
    assert test
    assert not train & test
    assert len(train | test) == 20


def test_answers_of_pairs_and_single_ones_come_one_by_one_with_their_labels(
    files: tuple[str, str], tmp_path: Path
) -> None:
    lines = _split(tmp_path / "out", *files)

    rows = [row for name in PARTS for row in _read(tmp_path / "out" / f"{name}.jsonl")]
    assert len(rows) == 20 * 2 + 10
    assert {(row["response"], row["is_safe"]) for row in rows} == {
        ("a", False),
        ("b", True),
        ("c", True),
    }
    assert any("pairs.jsonl: pku; train" in line for line in lines)


def test_a_prompt_stays_in_its_part_when_files_are_added(
    files: tuple[str, str], tmp_path: Path
) -> None:
    _split(tmp_path / "one", files[0])
    _split(tmp_path / "two", *files)

    for name in PARTS:
        one, two = (_read(tmp_path / out / f"{name}.jsonl") for out in ("one", "two"))
        assert two[: len(one)] == one


def test_an_answer_that_is_safe_in_one_row_and_unsafe_in_another_is_left_out(
    tmp_path: Path,
) -> None:
    file = _write(
        tmp_path / "rows.jsonl",
        [
            _single("p", "a", True),
            _single("p", "a", False),
            _single("p", "b", True),
            _single("q", "a", False),
        ],
    )

    lines = _split(tmp_path / "out", file, parts={"all": 1.0})

    rows = _read(tmp_path / "out" / "all.jsonl")
    assert [(row["prompt"], row["response"]) for row in rows] == [("p", "b"), ("q", "a")]
    assert "left out: 2 safe in one row and unsafe in another" in lines


def test_pairs_keep_what_they_say_and_copies_come_once(tmp_path: Path) -> None:
    pair = _pair("p", ("a", False), ("b", True))
    file = _write(tmp_path / "rows.jsonl", [pair, pair])

    lines = _split(tmp_path / "out", file, shape="pairs", parts={"all": 1.0})

    assert _read(tmp_path / "out" / "all.jsonl") == [pair]
    assert "left out: 1 a second copy" in lines


def test_prompts_have_the_class_of_their_file_and_a_conversation_stays_one(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    file = _write(tmp_path / "rows.jsonl", [{"prompt": "p"}, {"prompt": turns}])

    _split(tmp_path / "out", f"EHD={file}", shape="prompts", parts={"all": 1.0})

    assert _read(tmp_path / "out" / "all.jsonl") == [
        {"prompt": "p", "category": "EHD"},
        {"prompt": turns, "category": "EHD"},
    ]


def test_the_same_command_again_changes_nothing_and_another_split_is_refused(
    files: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _split(out, *files)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    _split(out, *files)

    with pytest.raises(ConfigError, match=r"train\.jsonl: is there and differs"):
        _split(out, *files, seed=1)

    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_broken_row_stops_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = _write(tmp_path / "rows.jsonl", [_single("p", "a", True), _single("q", "a", 7)])

    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        _split(tmp_path / "out", file, parts={"all": 1.0})

    assert not list((tmp_path / "out").iterdir())


def test_a_part_without_rows_is_refused(tmp_path: Path) -> None:
    file = _write(tmp_path / "rows.jsonl", [_single("p", "a", True)])
    with pytest.raises(DataError, match="would hold no row"):
        _split(tmp_path / "out", file)


@pytest.mark.parametrize(
    "text", ["train", "train=0", "train=x", "=0.5", "train=-1", "a b=1", "x=inf"]
)
def test_what_is_no_part_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a name and a share"):
        parts_of([text])


def test_shares_need_not_add_up_to_one() -> None:
    assert parts_of(["a=3", "b=1"]) == {"a": 0.75, "b": 0.25}


def test_a_class_before_the_file_and_a_file_with_an_equals_sign() -> None:
    assert file_of("EHD=x.csv").category is Category.EHD
    assert file_of("run=1.csv").file == "run=1.csv"


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1), st.integers(0, 9))
def test_every_prompt_has_a_part_whatever_it_says(text: str, seed: int) -> None:
    record = Record(kind=Kind.PROMPT, messages=as_conversation(text))
    assert part_of(record, PARTS, seed) == part_of(record, PARTS, seed)
    assert part_of(record, PARTS, seed) in PARTS


def test_parts_are_as_large_as_their_shares() -> None:
    records = [
        Record(
            kind=Kind.PROMPT,
            messages=as_conversation(
                f"word{chr(97 + n % 26)} {chr(97 + n // 26 % 26)} {chr(97 + n // 676)}"
            ),
        )
        for n in range(4000)
    ]
    share = sum(part_of(record, {"a": 0.2, "b": 0.8}, 0) == "a" for record in records) / 4000
    # 4,000 draws: 0.2 +- 4 standard errors of 0.0063.
    assert abs(share - 0.2) < 0.026
