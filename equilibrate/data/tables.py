"""Data sets of labelled answers: saved folders and JSON lines, read by column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import load_from_disk

from equilibrate.data.columns import Columns, require_columns
from equilibrate.errors import DataError

SFT_COLUMNS = ("prompt", "response")


def load_columns(path: Path, columns: Sequence[str]) -> Columns:
    """A data set: a folder of `Dataset.save_to_disk`, or a file of JSON lines.

    Args: columns: those that it must have.
    Raises: DataError, naming the file or folder and the line or column, if it is missing, empty or
        cannot be read.
    """
    table = _read_lines(path) if path.is_file() else _read_folder(path)
    try:
        require_columns(table, columns)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return table


def _read_folder(folder: Path) -> Columns:
    if not (folder / "dataset_info.json").is_file():
        raise DataError(
            f"{folder}: no data set here; give a file of JSON lines, or save one with "
            "Dataset.save_to_disk"
        )
    try:
        columns: Columns = load_from_disk(str(folder)).to_dict()
    except IndexError:
        # How `datasets` 5 meets a set that was saved without a row.
        raise DataError(f"{folder}: the data set is empty; give at least one row") from None
    return columns


def _read_lines(file: Path) -> Columns:
    """Every key that any row has is a column; what a row lacks is None there."""
    rows: list[dict[str, Any]] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}:{number}: must be one JSON object ({error})") from None
            if not isinstance(row, dict):
                raise DataError(f"{file}:{number}: must be one JSON object, not {str(row)[:40]!r}")
            rows.append(row)
    if not rows:
        raise DataError(f"{file}: the data set is empty; give at least one row")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
