"""Files of labelled answers, in any columns or in a format that says what its labels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from equilibrate.data.recognition import SAMPLED_ROWS, Entry, Source
from equilibrate.data.records import (
    PROMPTS,
    Kind,
    Record,
    Row,
    first_of,
    has,
    prompt_of,
    response_of,
)
from equilibrate.data.rows import RejectedRows, shown
from equilibrate.errors import DataError
from equilibrate.types import Conversation

RESPONSES = ("response", "completion")
"""Columns of an answer, where none is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerColumns:
    """What the columns of a file of labelled answers are called; empty where it says so itself:
    by its format, or as `prompt`, `response` and `label`."""

    prompt: str = ""
    response: str = ""
    label: str = ""
    group: str = ""
    """Column whose values are counted apart, for example the model; empty for the models that the
    format tells apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledAnswer:
    prompt: Conversation
    response: str
    label: str
    group: str = ""


def read_labelled(
    file: Path,
    columns: AnswerColumns,
    rejected: RejectedRows,
    *,
    needs_label: bool = True,
) -> list[LabelledAnswer]:
    """Of a format that labels its answers (BeaverTails, PKU-SafeRLHF, the answers to XSTest,
    Do-Not-Answer) all that a row has: `safe` or `unsafe`, `wanted` or `unwanted`, else its verdict.

    Args: rejected: takes the rows that break a rule.
    Raises: DataError naming the file and the column or row that is wrong.
    """
    named = {"prompt": columns.prompt or "prompt", "response": columns.response or "response"}
    are_named = bool(columns.prompt or columns.response)
    source = Source(file, named if are_named else {}, classes=False)
    sample = list(islice(source, SAMPLED_ROWS))
    by_format = not are_named and any(_labels(entry.record) for entry in sample)
    _require_columns(file, sample, columns, by_format, needs_label)
    read = _of_format if by_format else _of_columns
    answers: list[LabelledAnswer] = []
    places = 0
    for entry in source:
        places += 1
        try:
            answers.extend(read(entry, columns, needs_label))
        except DataError as error:
            rejected.add(entry.where, str(error))
    rejected.settle(places)
    if not answers:
        raise DataError(f"{file}: holds no answer; give at least one row")
    return answers


def _of_format(entry: Entry, columns: AnswerColumns, needs_label: bool) -> list[LabelledAnswer]:
    record = entry.record
    if record is None:
        raise entry.fault or DataError("must hold an answer")
    labels = _labels(record) or ("",) * len(record.responses)
    if columns.label:
        if len(record.responses) > 1:
            raise DataError(
                f"must hold one answer, as {columns.label} ({shown(entry.row.get(columns.label))}) "
                f"is about one, and has {len(record.responses)}"
            )
        labels = (_cell(entry.row, columns.label),)
    if needs_label and "" in labels:
        raise DataError("an answer has no label; leave the row out")
    groups = record.models or ("",) * len(labels)
    if columns.group:
        groups = (_cell(entry.row, columns.group),) * len(labels)
    return [
        LabelledAnswer(prompt=record.messages, response=response, label=label, group=group)
        for response, label, group in zip(record.responses, labels, groups, strict=True)
    ]


def _labels(record: Record | None) -> tuple[str, ...]:
    """Of each answer what the format says of it; () where it says nothing of any."""
    if record is None:
        return ()
    if record.is_good is not None:
        return ("wanted" if record.is_good else "unwanted",)
    if any(safe is not None for safe in record.is_safe):
        names = {None: "", True: "safe", False: "unsafe"}
        return tuple(names[safe] for safe in record.is_safe)
    return (record.label,) if record.kind is Kind.LABELLED and record.label else ()


def _of_columns(entry: Entry, columns: AnswerColumns, needs_label: bool) -> list[LabelledAnswer]:
    """An answer may be empty here, which no format allows that models learn from."""
    row = entry.row
    if not isinstance(row, dict):
        raise entry.fault or DataError(f"({shown(row)}) must be one JSON object")
    name = columns.response or first_of(row, RESPONSES)
    before, response = ((), "") if row.get(name) == "" else response_of(row, name)
    label = columns.label or "label"
    one = LabelledAnswer(
        prompt=before or prompt_of(row, columns.prompt or first_of(row, PROMPTS)),
        response=response,
        label=_cell(row, label) if needs_label or has(row, label) else "",
        group=_cell(row, columns.group) if columns.group else "",
    )
    return [one]


def _cell(row: Row, name: str) -> str:
    if not has(row, name):
        raise DataError(f"{name} ({shown(row.get(name))}) must be given")
    return str(row[name])


def _require_columns(
    file: Path,
    sample: Sequence[Entry],
    columns: AnswerColumns,
    by_format: bool,
    needs_label: bool,
) -> None:
    """By the first row: a file without a column is refused as a whole."""
    row = next((entry.row for entry in sample if isinstance(entry.row, dict)), None)
    if row is None:
        return
    needed = {"group": columns.group, "label": columns.label if needs_label else ""}
    if not by_format:
        needed["prompt"] = columns.prompt or first_of(row, PROMPTS)
        needed["response"] = columns.response or first_of(row, RESPONSES)
        needed["label"] = (columns.label or "label") if needs_label else ""
    for name, column in needed.items():
        if column and column not in row:
            raise DataError(
                f"{file}: has no column {column!r} for the {name}, but "
                f"{', '.join(map(str, row))}; name its column by --{name}-column"
            )
    most = max(len(entry.record.responses) if entry.record else 0 for entry in sample)
    if by_format and columns.label and most > 1:
        raise DataError(
            f"{file}: a row holds {most} answers, and --label-column ({columns.label!r}) is about "
            "one; name its answer by --response-column"
        )
