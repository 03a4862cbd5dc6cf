"""Data sets of labelled answers: saved folders and JSON lines, read by column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import load_from_disk

from equilibrate.data.columns import Columns, RowError, require_columns
from equilibrate.data.rows import RejectedRows, read_rows, shown
from equilibrate.errors import DataError

SFT_COLUMNS = ("prompt", "response")

View = Callable[[Columns], object]
"""Reads what it needs of a data set of any length. Raises: RowError for a row it cannot read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A data set, and where its rows stand."""

    columns: Columns
    places: Sequence[str]
    """`file:line` or `folder:row` of each row."""

    def readable(self, view: View, rejected: RejectedRows) -> Columns:
        """The columns without the rows that a view cannot read, which `rejected` takes.

        Raises: DataError as `RejectedRows.settle`.
        """
        faults = self._faults(view, rejected)
        kept = [row for row in range(len(self.places)) if row not in faults]
        rejected.settle(len(kept) + len(rejected))
        if len(kept) == len(self.places):
            return self.columns
        return {name: [values[row] for row in kept] for name, values in self.columns.items()}

    def _faults(self, view: View, rejected: RejectedRows) -> set[int]:
        try:
            view(self.columns)
        except RowError:
            pass
        except DataError:
            # Of the data set as a whole: who uses it says more about it.
            return set()
        else:
            return set()
        found = set()
        for row, place in enumerate(self.places):
            fault = _fault({name: [values[row]] for name, values in self.columns.items()}, view)
            if fault:
                rejected.add(place, fault)
                found.add(row)
        return found


def load_table(path: Path, columns: Sequence[str], rejected: RejectedRows) -> Table:
    """A data set: a folder of `Dataset.save_to_disk`, or a file of JSON lines.

    Args:
        columns: those that it must have.
        rejected: takes the lines that hold no JSON object; it is not settled here.
    Raises: DataError, naming the file or folder and the column, if it is missing, empty or cannot
        be read.
    """
    table = _read_lines(path, rejected) if path.is_file() else _read_folder(path)
    if not table.places:
        rejected.settle(len(rejected))
        raise DataError(f"{path}: the data set is empty; give at least one row")
    try:
        require_columns(table.columns, columns)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return table


def load_columns(path: Path, columns: Sequence[str]) -> Columns:
    """The columns of `load_table`. Raises: DataError also for the first broken line."""
    rejected = RejectedRows(path)
    table = load_table(path, columns, rejected)
    rejected.settle(len(table.places) + len(rejected))
    return table.columns


def _fault(row: Columns, view: View) -> str:
    try:
        view(row)
    except RowError as error:
        return str(error).partition(", ")[2]
    except DataError:
        # For example a pair that holds one answer twice: readable, and left out by the view.
        return ""
    return ""


def _read_folder(folder: Path) -> Table:
    if not (folder / "dataset_info.json").is_file():
        raise DataError(
            f"{folder}: no data set here; give a file of JSON lines, or save one with "
            "Dataset.save_to_disk"
        )
    try:
        columns: Columns = load_from_disk(str(folder)).to_dict()
    except IndexError:
        # How `datasets` 5 meets a set that was saved without a row.
        columns = {}
    count = len(next(iter(columns.values()), ()))
    return Table(columns=columns, places=[f"{folder}:{row}" for row in range(count)])


def _read_lines(file: Path, rejected: RejectedRows) -> Table:
    """Every key that any row has is a column; what a row lacks is None there."""
    rows: list[dict[str, Any]] = []
    places = []
    for where, row in read_rows(file):
        if isinstance(row, dict):
            rows.append(row)
            places.append(where)
        elif isinstance(row, DataError):
            rejected.add(where, str(row))
        else:
            rejected.add(where, f"({shown(row)}) must be one JSON object")
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(columns={name: [row.get(name) for row in rows] for name in names}, places=places)
