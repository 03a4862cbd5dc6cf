"""Saved data sets as tables with checked columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, load_from_disk
from numpy.typing import NDArray

from equilibrate.data.columns import require_columns, require_labels
from equilibrate.errors import DataError
from equilibrate.types import ScorerKind

if TYPE_CHECKING:
    pass


SFT_COLUMNS = ("prompt", "response")


REWARD_COLUMNS = ("prompt", "response_0", "response_1", "better_response_id")


COST_COLUMNS = (
    "prompt",
    "response_0",
    "response_1",
    "safer_response_id",
    "is_response_0_safe",
    "is_response_1_safe",
)


def load_columns(folder: Path, columns: Sequence[str]) -> Dataset:
    """The data set saved in `folder`.

    Raises: DataError, naming folder and column, if it is missing, empty or lacks a column.
    """
    if not (folder / "dataset_info.json").is_file():
        raise DataError(f"{folder}: no data set here; save one with Dataset.save_to_disk")
    try:
        table = load_from_disk(str(folder))
    except IndexError:
        # How `datasets` 5 meets a set that was saved without a row.
        raise DataError(f"{folder}: the data set is empty; give at least one row") from None
    try:
        require_columns(dict.fromkeys(table.column_names, ()), columns)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    return table


def read_labels(table: Dataset, folder: Path, column: str) -> NDArray[np.int64]:
    """A 0/1 column. Raises: DataError naming folder, row and value of the first other entry."""
    values = table[column][:]
    try:
        require_labels({column: values}, column)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    return np.asarray(values, dtype=np.int64)


def load_pair_labels(
    kind: ScorerKind, folder: Path
) -> tuple[Dataset, NDArray[np.int64], NDArray[np.float32]]:
    """The table, which response [R] is to score higher, and signs [R, 2] by response.

    Raises: DataError naming the folder and the column, row and value at fault.
    """
    table = load_columns(folder, REWARD_COLUMNS if kind == "reward" else COST_COLUMNS)
    if kind == "reward":
        better = read_labels(table, folder, "better_response_id")
        return table, better, np.zeros((len(table), 2), dtype=np.float32)
    safer = read_labels(table, folder, "safer_response_id")
    is_safe = [read_labels(table, folder, f"is_response_{i}_safe") for i in (0, 1)]
    return table, 1 - safer, (1 - 2 * np.stack(is_safe, axis=1)).astype(np.float32)
