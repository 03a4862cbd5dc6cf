"""Files of labelled answers, in any columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equilibrate.data.readers import read_rows
from equilibrate.data.rows import RejectedRows, shown, text_fault
from equilibrate.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerColumns:
    """What the columns of a file of labelled answers are called."""

    prompt: str = "prompt"
    response: str = "response"
    label: str = "label"
    group: str = ""
    """Column whose values are counted apart, for example the model; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledAnswer:
    prompt: str
    response: str
    label: str
    group: str = ""


def read_labelled(
    file: Path, columns: AnswerColumns, *, needs_label: bool = True
) -> list[LabelledAnswer]:
    """Raises: DataError naming the file and the column or row that is wrong."""
    rejected = RejectedRows(file)
    answers = []
    places = 0
    wanted = {"prompt": columns.prompt, "response": columns.response}
    if needs_label:
        wanted["label"] = columns.label
    if columns.group:
        wanted["group"] = columns.group
    for where, row in read_rows(file):
        places += 1
        fault = _fault(row, wanted, file) if places == 1 or not isinstance(row, dict) else ""
        fault = fault or _row_fault(row, wanted)
        if fault:
            rejected.add(where, fault)
            continue
        texts = {name: row[column] for name, column in wanted.items()}
        label = str(row.get(columns.label, "")) if not needs_label else str(texts["label"])
        answers.append(
            LabelledAnswer(
                prompt=texts["prompt"],
                response=texts["response"],
                label=label,
                group=str(texts.get("group", "")),
            )
        )
    rejected.settle(places)
    if not answers:
        raise DataError(f"{file}: holds no answer; give at least one row")
    return answers


def _fault(row: Any, wanted: Mapping[str, str], file: Path) -> str:
    """Of a row that is none; a file without a column is refused as a whole."""
    if isinstance(row, DataError):
        return str(row)
    if not isinstance(row, dict):
        return f"({shown(row)}) must be a row of named columns"
    for name, column in wanted.items():
        if column not in row:
            raise DataError(
                f"{file}: has no column {column!r} for the {name}, but "
                f"{', '.join(map(str, row))}; name its column by --{name}-column"
            )
    return ""


def _row_fault(row: Mapping[str, Any], wanted: Mapping[str, str]) -> str:
    for name, column in wanted.items():
        value = row.get(column)
        if name in ("prompt", "response"):
            fault = text_fault(value, may_be_empty=name == "response")
        else:
            fault = "must be given" if value is None or value == "" else ""
        if fault:
            return f"{column} ({shown(value)}) {fault}"
    return ""
