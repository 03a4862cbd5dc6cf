"""Rows of files and folders, one by one, and those that are set apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equilibrate.data import readers
from equilibrate.data.readers import read_rows
from equilibrate.data.rows import RejectedRows, check_disjoint, shown, text_fault
from equilibrate.errors import ConfigError, DataError
from equilibrate.types import Category, Prompt


def test_a_line_beyond_the_limit_is_a_broken_row_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 2**20)
    file = tmp_path / "rows.jsonl"
    for length in (2**20 - 8, 2**20, 3 * 2**20):
        long = json.dumps({"a": "x" * (length - 9)})
        assert len(long) == length
        for end in ("\n", ""):
            file.write_text(f'{{"a": 1}}\n{long}{end}' + ('{"a": 2}' if end else ""))
            found = [content for _, content in read_rows(file)]
            assert found[0] == {"a": 1}
            if len(long) + len(end) > 2**20:
                assert isinstance(found[1], DataError)
                assert "must have at most 1 MiB; leave it out" in str(found[1])
            else:
                assert found[1] == json.loads(long)
            assert found[2:] == ([{"a": 2}] if end else [])


def test_rows_of_other_sources_stay_in_the_file_of_rejected_rows(tmp_path: Path) -> None:
    file = tmp_path / "rejected.jsonl"
    for source, rules in (("a", ["one"]), ("b", ["two", "three"]), ("a", ["four"]), ("b", [])):
        rejected = RejectedRows(Path(source), max_fraction=0.5, file=file)
        for number, rule in enumerate(rules):
            rejected.add(f"{source}:{number}", rule)
        rejected.settle(10)
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert entries == [{"source": "a", "where": "a:0", "rule": "four"}]


def test_no_file_is_written_where_nothing_was_rejected(tmp_path: Path) -> None:
    RejectedRows(Path("a"), file=tmp_path / "rejected.jsonl").settle(3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fraction", "count", "of", "fits"),
    [(0.0, 0, 5, True), (0.0, 1, 10**6, False), (0.29, 29, 100, True), (0.29, 30, 100, False),
     (0.01, 1, 99, False), (0.01, 1, 100, True)],
)  # fmt: skip
def test_the_limit(fraction: float, count: int, of: int, fits: bool) -> None:
    rejected = RejectedRows(Path("a"), max_fraction=fraction)
    for number in range(count):
        rejected.add(f"a:{number}", "rule")
    if fits:
        rejected.settle(of)
    else:
        with pytest.raises(DataError, match=r"^a:0: rule"):
            rejected.settle(of)


@pytest.mark.parametrize("fraction", [float("nan"), -1.0, 2.0])
def test_a_limit_that_is_no_share_is_named_as_it_was_written(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"^--rejected \(.*\) must be from 0 to 1"):
        RejectedRows(Path("a"), max_fraction=fraction, limit="--rejected")


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("text", ""),
        ("\U0001f600", ""),
        (None, "must be a string"),
        (" \n", "must not be empty"),
        ("a\0", "must not contain a NUL character; remove it"),
        ("\udc80", "must be valid Unicode; it has half of a surrogate pair"),
    ],
)
def test_faults_of_a_text(value: object, fault: str) -> None:
    assert text_fault(value) == fault
    assert text_fault(" ", may_be_empty=True) == ""


def test_what_is_shown_of_a_value_is_short() -> None:
    assert shown("x" * 10**7) == f"'{'x' * 56}..."
    assert shown([1, 2]) == "[1, 2]"


def prompt(prompt_id: str, text: str) -> Prompt:
    return Prompt(prompt_id=prompt_id, text=text, token_ids=(1,), category=Category.GENERAL)


def test_disjoint_prompts_pass():
    check_disjoint([prompt("t1", "bake bread")], [prompt("e1", "bake cakes")])
    check_disjoint([], [prompt("e1", "bake cakes")])


def test_a_leak_is_named_whatever_its_case_and_spacing():
    train = [prompt("t1", "bake bread"), prompt("t2", "Build  a kite")]
    evaluation = [prompt("e1", "fly a kite"), prompt("e2", "build a KITE\n")]
    with pytest.raises(DataError, match=r"'e2'.*'t2'.*these 1 "):
        check_disjoint(train, evaluation)
