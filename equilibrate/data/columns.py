"""A data set by column, and what its columns may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from equilibrate.data.rows import shown, text_fault
from equilibrate.errors import DataError
from equilibrate.types import Category

Columns = Mapping[str, Sequence[Any]]
"""A data set by column; all columns are equally long."""


class RowError(DataError):
    """What one row holds breaks a rule: `row N, column (value) rule`."""


def categories_of(columns: Columns) -> list[Category]:
    """GENERAL where the data have no column `category`.

    Raises: RowError for an unknown class.
    """
    names = columns.get("category")
    if names is None:
        return [Category.GENERAL] * len(columns["prompt"])
    known = {category.value: category for category in Category}
    for row, name in enumerate(names):
        if not isinstance(name, str) or name not in known:
            raise RowError(f"row {row}, category ({shown(name)}) must be one of {', '.join(known)}")
    return [known[name] for name in names]


def require_columns(columns: Columns, needed: Sequence[str]) -> None:
    """Raises: DataError naming the first column that is missing, and those there are."""
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            f"column {missing[0]!r} is missing; needed are {', '.join(needed)}, "
            f"found {', '.join(columns)}"
        )


def require_text(columns: Columns, names: Sequence[str]) -> None:
    """Raises: RowError for the first entry that is no text."""
    for name in names:
        for row, value in enumerate(columns[name]):
            if name == "prompt" and isinstance(value, tuple):
                continue  # a conversation, whose turns were read one by one
            fault = text_fault(value, may_be_empty=True)
            if not isinstance(value, str):
                fault = "must be text; of a conversation give the last answer"
            if fault:
                raise RowError(f"row {row}, {name} ({shown(value)}) {fault}")


def require_labels(columns: Columns, name: str) -> None:
    """A 0/1 column, if there is one. Raises: RowError for the first other entry."""
    for row, value in enumerate(columns.get(name, ())):
        if value not in (0, 1):
            raise RowError(f"row {row}, {name} ({shown(value)}) must be 0 or 1")
