"""Kinds of files: one table of rows comes out of each, and nothing of a broken file is lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict

from equilibrate.data import readers
from equilibrate.data.readers import hub_rows, is_hub_name, read_rows, splits_of
from equilibrate.errors import DataError

ROWS = [{"prompt": f"p{number}", "response": "a\nb, c\u2028"} for number in range(3)]


def contents(path: Path) -> list[Any]:
    return [content for _, content in read_rows(path)]


def places(path: Path) -> list[str]:
    return [where.removeprefix(str(path)) for where, _ in read_rows(path)]


def csv_text(separator: str = ",") -> str:
    lines = [
        separator.join(ROWS[0]),
        *(f'{row["prompt"]}{separator}"a\nb, c\u2028"' for row in ROWS),
    ]
    return "\r\n".join(lines)


TEXTS = {
    "rows.jsonl": "\n\n".join(map(json.dumps, ROWS)),
    "rows.json": json.dumps(ROWS, indent=2),
    "lines.json": "\n".join(map(json.dumps, ROWS)),
    "field.json": json.dumps({"data": ROWS}),
    "rows.csv": csv_text(),
    "semicolons.csv": csv_text(";"),
    "rows.tsv": csv_text("\t"),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_kind_of_text_gives_the_same_rows(
    tmp_path: Path, name: str, mark: str, packed: bool
) -> None:
    content = (mark + TEXTS[name]).encode()
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert contents(path) == ROWS


def test_tables_and_folders_give_the_same_rows(tmp_path: Path) -> None:
    table = Dataset.from_list(ROWS)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    table.to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    for path in (tmp_path / "rows.parquet", tmp_path / "saved", tmp_path / "hub", arrow):
        assert contents(path) == ROWS, path
    assert places(tmp_path / "rows.parquet") == [":0", ":1", ":2"]


def test_a_place_is_where_a_row_begins(tmp_path: Path) -> None:
    for name, found in (("rows.csv", [":2", ":4", ":6"]), ("rows.json", [":0", ":1", ":2"])):
        (tmp_path / name).write_bytes(TEXTS[name].encode())
        assert places(tmp_path / name) == found


def test_several_splits_are_one_set_each(tmp_path: Path) -> None:
    one = Dataset.from_list(ROWS)
    DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "sets"))
    assert splits_of(tmp_path / "sets") == [tmp_path / "sets" / n for n in ("train", "test")]
    with pytest.raises(DataError, match=r"set of splits \(train, test\); try .*sets/train"):
        contents(tmp_path / "sets")
    assert contents(tmp_path / "sets" / "test") == ROWS
    (tmp_path / "files").mkdir()
    for split in ("train", "test"):
        (tmp_path / "files" / f"{split}.csv").write_text(csv_text())
    with pytest.raises(DataError, match=r"set of splits \(train, test\); try .*files/train\.csv"):
        contents(tmp_path / "files")


def test_questions_by_topic(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"a": {"b": ["p", "q"]}, "c": ["r", 3]}))
    assert [(where.removeprefix(str(path)), row["topic"], row["question"])
            for where, row in read_rows(path)] == [
        (":a:b[0]", "a / b", "p"), (":a:b[1]", "a / b", "q"), (":c[0]", "c", "r"), (":c[1]", "c", 3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.json", '[{"a": 1}, {"a": 2', r":1: .* nothing behind it can be read"),
        ("a.json", '[{"a": 1}, oops, {"a": 2}]', r":1: .*must be JSON .* nothing behind it"),
        ("a.json", '[{"a": 1}', r":0: .* nothing behind it can be read"),
        ("a.json", '[{"a": 1}] [{"a": 2}]', "something stands behind its end"),
        ("a.json", '{"a": [1, 2}', "must be JSON"),
        ("a.json", '{"x": [{"a": 1}], "y": [{"a": 2}]}', r"one list of rows and has 2 \(x, y\)"),
        ("a.json", '{"prompt": ["p"], "response": ["a"]}', "holds columns"),
        ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n', r":3: a quote must be closed"),
        ("a.csv", "a,b,a\n1,2,3\n", "column 'a' stands twice"),
        ("a.jsonl.gz", "no gzip", "cannot be read"),
        ("a.parquet", "no parquet", "is no parquet file"),
        ("a.jsonl", "\ufeff{}".encode("utf-16"), "is UTF-16 text"),
    ],
)
def test_a_file_of_which_the_rest_is_lost_is_refused(
    tmp_path: Path, name: str, content: str | bytes, rule: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"{name}.*{rule}"):
        contents(path)


def test_a_cut_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(TEXTS["rows.jsonl"].encode())[:-9])
    with pytest.raises(DataError, match=r"cannot be read \(Compressed file ended"):
        contents(path)


def test_broken_rows_of_csv_come_as_their_errors(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,2\n3\n4,5,6\n"x"y,7\n\n\xff,8\n9,0\n')
    found = contents(path)
    assert [str(row) for row in found if isinstance(row, DataError)] == [
        "('3') must have 2 cells and has 1; put cells that hold the separator or a line break in "
        "quotes",
        "('4') must have 2 cells and has 3; put cells that hold the separator or a line break in "
        "quotes",
        "must be a row of CSV (',' expected after '\"')",
    ]
    assert [row for row in found if isinstance(row, dict)] == [
        {"a": "1", "b": "2"}, {"a": "\udcff", "b": "8"}, {"a": "9", "b": "0"}
    ]  # fmt: skip


def test_rows_beyond_the_limit_are_broken_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 2**18)
    rows = [{"a": "x"}, {"a": "y" * 3 * 2**20}, {"a": "z"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.csv").write_text("a\n" + "".join(f"{row['a']}\n" for row in rows))
    for name in ("rows.json", "rows.csv"):
        first, long, last = contents(tmp_path / name)
        assert (first, last) == (rows[0], rows[2])
        assert isinstance(long, DataError)


def test_an_unclosed_list_of_any_length_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = [{"a": "x" * 999, "n": number} for number in range(4000)]
    path.write_text(json.dumps(rows))
    assert contents(path) == rows
    path.write_text(json.dumps(rows)[:-1])
    with pytest.raises(DataError, match=r"rows\.json:3999: "):
        contents(path)


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("{}")
    assert is_hub_name("owner/name")
    assert is_hub_name("owner/name:train")
    assert not any(map(is_hub_name, ["a/b", "name", "/a/c", "../a/c", "a/b/c"]))
    # A file that was mistyped, and one in a folder that is here.
    assert not any(map(is_hub_name, ["mine/nofile.csv", "mine/x.jsonl.gz", "a/other"]))
    assert is_hub_name("owner/name-v1.5")

    def load(name: str, *, split: str | None, streaming: bool) -> Any:
        assert streaming
        if name == "off/line":
            raise ConnectionError("no route")
        sets = {"train": iter(ROWS), "test": iter(ROWS[:1])}
        return sets[split] if split else sets

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(hub_rows("o/n:test")) == [("o/n:test:0", ROWS[0])]
    with pytest.raises(DataError, match=r"set of splits \(train, test\); try o/n:train"):
        list(hub_rows("o/n"))
    with pytest.raises(DataError, match=r"off/line: .*\(ConnectionError.*may be offline"):
        list(hub_rows("off/line"))
