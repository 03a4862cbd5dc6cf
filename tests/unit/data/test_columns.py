"""What the rows of a data set may hold, and which of them a view can read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equilibrate.data.answers import demonstrations, pairs
from equilibrate.data.columns import Columns, RowError, categories_of
from equilibrate.data.rows import RejectedRows
from equilibrate.data.tables import Table, View, load_table
from equilibrate.errors import DataError

SOURCE = Path("data/pairs")


def read_pairs(columns: Columns) -> None:
    pairs(columns, by="preference")


def readable(columns: Columns, view: View, rejected: RejectedRows) -> Columns:
    places = [f"{SOURCE}:{row}" for row in range(len(columns["prompt"]))]
    return Table(columns=columns, places=places).readable(view, rejected)


def columns(count: int = 4, **changes: object) -> Columns:
    """Pairs; a change puts one value into row 2."""
    table: dict[str, list[object]] = {
        name: [f"{name} {row}" for row in range(count)] for name in ("prompt", "chosen", "rejected")
    }
    table["is_chosen_safe"] = [1] * count
    table["is_rejected_safe"] = [0] * count
    for name, value in changes.items():
        table[name][2] = value
    return table


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"prompt": None}, "prompt (None) must be text; of a conversation give the last answer"),
        ({"chosen": ["a"]}, "chosen (['a']) must be text; of a conversation give the last answer"),
        ({"rejected": "\ud800"}, "rejected ('\\ud800') must be valid Unicode; it has half of a "
         "surrogate pair"),
        ({"rejected": "a\0"}, "rejected ('a\\x00') must not contain a NUL character; remove it"),
        ({"is_chosen_safe": None}, "is_chosen_safe (None) must be 0 or 1"),
        ({"is_rejected_safe": "yes"}, "is_rejected_safe ('yes') must be 0 or 1"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read_is_left_out_and_listed(
    tmp_path: Path, change: dict[str, object], rule: str
) -> None:
    file = tmp_path / "rejected.jsonl"
    rejected = RejectedRows(SOURCE, max_fraction=0.25, file=file)
    kept = readable(columns(**change), read_pairs, rejected)
    assert kept["prompt"] == ["prompt 0", "prompt 1", "prompt 3"]
    assert {len(values) for values in kept.values()} == {3}
    [entry] = map(json.loads, file.read_text().splitlines())
    assert (entry["where"], entry["rule"]) == (f"{SOURCE}:2", rule)
    with pytest.raises(DataError, match=rf"^{SOURCE}:2: {next(iter(change))} "):
        readable(columns(**change), read_pairs, RejectedRows(SOURCE))


def test_a_column_that_the_view_does_not_read_may_hold_anything() -> None:
    table = {**columns(), "response": ["a", "b", None, "d"]}
    assert readable(table, read_pairs, RejectedRows(SOURCE)) is table
    table = {**columns(chosen=None), "response": ["a", "b", "c", "d"]}
    assert readable(table, demonstrations, RejectedRows(SOURCE)) is table


def test_what_is_wrong_with_the_data_set_as_a_whole_is_left_to_its_user() -> None:
    table = {"prompt": ["p"], "chosen": ["a"]}
    assert readable(table, read_pairs, RejectedRows(SOURCE)) is table
    with pytest.raises(DataError, match="column 'rejected' is missing"):
        read_pairs(table)


def test_a_pair_that_holds_one_answer_twice_is_no_broken_row() -> None:
    table = columns(prompt=None)
    table["rejected"][0] = table["chosen"][0]  # type: ignore[index]
    rejected = RejectedRows(SOURCE, max_fraction=0.25)
    assert len(readable(table, read_pairs, rejected)["prompt"]) == 3


@pytest.mark.parametrize("value", ["EHF", None, {"violence": True}, ["EHD"]])
def test_a_class_of_any_kind_is_named(value: object) -> None:
    with pytest.raises(RowError, match=r"^row 1, category \(.*\) must be one of GENERAL, "):
        categories_of({"prompt": ["p", "q"], "category": ["EHD", value]})


def test_lines_without_an_object_count_as_rejected_rows_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    lines = [json.dumps(good)] * 7 + ["{", "[1]", json.dumps(good | {"chosen": 3})]
    file.write_text("\n\n".join(lines))
    rejected = RejectedRows(file, max_fraction=0.3)
    columns = load_table(file, ("prompt",), rejected).readable(read_pairs, rejected)
    assert len(columns["prompt"]) == 7
    rejected = RejectedRows(file, max_fraction=0.29)
    with pytest.raises(DataError) as caught:
        load_table(file, ("prompt",), rejected).readable(read_pairs, rejected)
    said = str(caught.value).splitlines()
    assert said[0].startswith(f"{file}:15: (b'{{') must be one JSON object (")
    assert said[1] == f"{file}:17: ([1]) must be one JSON object"
    assert said[2].startswith(f"{file}:19: chosen (3) must be a string")
    assert said[3] == "3 of 10 rows break a rule, and data.max_rejected_fraction (0.29) allows 2"


def test_a_file_of_broken_lines_alone_shows_them(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* must be one JSON object"):
        load_table(file, ("prompt",), RejectedRows(file, max_fraction=0.5))
