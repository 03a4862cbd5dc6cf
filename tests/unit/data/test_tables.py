"""Saved folders and JSON lines, read by column."""

import json

import pytest
from datasets import Dataset

from equilibrate.data.tables import SFT_COLUMNS, load_columns
from equilibrate.errors import DataError

ROW = {"prompt": "p", "response": "r"}


def test_a_folder_and_lines_give_the_same_columns(tmp_path):
    Dataset.from_list([ROW, ROW]).save_to_disk(str(tmp_path / "folder"))
    file = tmp_path / "rows.jsonl"
    file.write_text("\ufeff" + json.dumps(ROW) + "\n\n" + json.dumps(ROW))
    expected = {"prompt": ["p", "p"], "response": ["r", "r"]}
    assert load_columns(tmp_path / "folder", SFT_COLUMNS) == expected
    assert load_columns(file, SFT_COLUMNS) == expected


def test_what_a_line_lacks_is_none(tmp_path):
    file = tmp_path / "rows.jsonl"
    pair = {"response_0": "a", "response_1": "b"}
    rows = [{"prompt": "p"} | pair, {"prompt": "q", "better_response_id": 1, "extra": 1} | pair]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_columns(file, ("prompt",)) == {
        "prompt": ["p", "q"],
        "response_0": ["a", "a"],
        "response_1": ["b", "b"],
        "better_response_id": [None, 1],
    }


@pytest.mark.parametrize("line", ["{", "[1]", "3", "\x00"])
def test_a_broken_line_is_named(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .* must be one JSON object"):
        load_columns(file, SFT_COLUMNS)


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: cannot be read"):
        load_columns(tmp_path / "nowhere", SFT_COLUMNS)


def test_a_missing_column_is_named(tmp_path):
    Dataset.from_list([{"prompt": "p"}]).save_to_disk(str(tmp_path / "pairs"))
    with pytest.raises(DataError, match=r"pairs: column 'response' is missing"):
        load_columns(tmp_path / "pairs", SFT_COLUMNS)


def test_an_empty_data_set_is_refused(tmp_path):
    Dataset.from_dict({"prompt": [], "response": []}).save_to_disk(str(tmp_path / "none"))
    (tmp_path / "none.jsonl").write_text("\n")
    for name in ("none", "none.jsonl"):
        with pytest.raises(DataError, match=f"{name}: the data set is empty"):
            load_columns(tmp_path / name, SFT_COLUMNS)
