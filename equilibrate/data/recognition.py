"""What a data set is, and its rows as records: the one door for what people bring."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from equilibrate.data.formats import FORMATS
from equilibrate.data.readers import Rows, hub_rows, is_hub_name, read_rows
from equilibrate.data.records import OfNoUse, Record, Row, text
from equilibrate.data.rows import RejectedRows, shown
from equilibrate.errors import DataError
from equilibrate.types import Category

SAMPLED_ROWS = 256
"""Rows that a format is recognised by."""
UNDECIDED = "other"
"""Label of rows that the annotators could not place: usable for no class."""
_LABELS = {
    "factual risk": Category.EHD,
    "intentional risk": Category.IHD,
    "mixed risk": Category.MHD,
    "no risk": Category.GENERAL,
    "none": Category.GENERAL,
    **{category.value.lower(): category for category in Category},
}
PERSONAL = re.compile(
    r"(hashed_)?ips?(_address)?|user_?(id|name|hash)|e?_?mail|phone|country|state|city|"
    r"geo\w*|location|lat(itude)?|lon(gitude)?|header|user_agent|cookie|session(_id)?|"
    r"worker_?id|annotator\w*_id|timestamp",
    re.IGNORECASE,
)
"""Names of columns about people. No record carries them, as it carries nothing but its own
fields; the survey names those that it met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """The format of a data set, and how to read its rows."""

    name: str
    why: str
    mapping: Mapping[str, str]
    """Columns by the names that the format has for them; empty where they have them already."""
    has_classes: bool
    """Whether `category` holds our classes: then every row must have one."""

    def named(self, row: object) -> dict[str, Any]:
        """A row under the names that the format knows. Raises: DataError for what is no row."""
        if isinstance(row, DataError):
            raise row
        if not isinstance(row, dict):
            raise DataError(f"({shown(row)}) must be one JSON object")
        named = renamed(row, self.mapping)
        if self.mapping and not named:
            text(row, next(iter(self.mapping.values())))
        return named

    def read(self, row: Row) -> Record:
        """Args: row: as `named`.
        Raises: DataError for a row that breaks a rule, OfNoUse for one that teaches nothing."""
        record = FORMATS[self.name].read(row)
        if not self.has_classes:
            return record
        label = text(row, "category")
        if label_key(label) == UNDECIDED:
            raise OfNoUse("of no class (OTHER)")
        return replace(record, category=parse_label(label), label="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row that was read: its record, or why there is none."""

    where: str
    row: Any
    """As the data set has it."""
    record: Record | None
    named: Row = field(default_factory=dict)
    """Where there is a record, the row under the names that the format knows."""
    fault: DataError | None = None


class Source:
    """A file, a folder or a name of the hub, recognised, and read anew each time it is iterated.

    Args:
        columns: names that the formats know -> columns of the file; used for a file that has all
            of these columns.
        classes: read our classes in `category`; without it they are left to who asks.
    Raises: DataError naming what is missing if no format fits, or if nothing can be read.
    """

    def __init__(
        self, path: str | Path, columns: Mapping[str, str] | None = None, *, classes: bool = True
    ) -> None:
        self.path = path
        sample = list(islice(self._rows(), SAMPLED_ROWS))
        found = recognise([row for _, row in sample], columns or {}, name=str(path))
        self.recognised = replace(found, has_classes=found.has_classes and classes)

    def __iter__(self) -> Iterator[Entry]:
        for where, row in self._rows():
            try:
                named = self.recognised.named(row)
                record = self.recognised.read(named)
            except DataError as fault:
                yield Entry(where=where, row=row, record=None, fault=fault)
            else:
                yield Entry(where=where, row=row, record=record, named=named)

    def _rows(self) -> Rows:
        name = str(self.path)
        return hub_rows(name) if is_hub_name(name) else read_rows(self.path)


def records_of(
    source: Source, rejected: RejectedRows, left_out: Counter[str]
) -> Iterator[tuple[Entry, Record]]:
    """The rows of a source that can be read, with their records.

    Args:
        rejected: takes the rows that break a rule; it is not settled here.
        left_out: counts the rows of no use, by reason.
    """
    for entry in source:
        if entry.record is not None:
            yield entry, entry.record
        elif isinstance(entry.fault, OfNoUse):
            left_out[str(entry.fault)] += 1
        else:
            rejected.add(entry.where, str(entry.fault))


def recognise(rows: Sequence[object], columns: Mapping[str, str], *, name: str) -> Recognised:
    """The first format whose columns are there and that reads at least half of the rows; where
    there is none, the first that reads any, else the first that its columns alone tell.

    Raises: DataError naming the columns and the format that comes closest.
    """
    objects = [row for row in rows if isinstance(row, dict)]
    mapping = (
        columns if columns and any(set(columns.values()) <= set(row) for row in objects) else {}
    )
    objects = [renamed(row, mapping) for row in objects]
    found = list(dict.fromkeys(column for row in objects for column in row))
    fitting = [key for key, form in FORMATS.items() if not missing(form.needs, found)]
    if not fitting and objects:
        raise DataError(f"{name}: {_unknown(found, bool(mapping))}")
    read = {key: _readable(key, objects) for key in fitting}
    chosen = next((key for key in fitting if 2 * read[key] >= len(objects)), None)
    told = next((key for key in fitting if not FORMATS[key].by_values), "prompts")
    chosen = chosen or next((key for key in fitting if read[key]), told)
    form = FORMATS[chosen]
    why = (
        f"{form.about}: columns {', '.join(_met(form.needs, found))}; "
        f"{read.get(chosen, 0)} of the first {len(objects)} rows read"
    )
    if mapping:
        why += f"; mapped {', '.join(f'{ours} = {theirs}' for ours, theirs in mapping.items())}"
    return Recognised(name=chosen, why=why, mapping=mapping, has_classes=_has_classes(objects))


def renamed(row: Row, mapping: Mapping[str, str]) -> dict[str, Any]:
    """Nothing but the columns of a mapping, under its names; a row itself without one."""
    if not mapping:
        return dict(row)
    return {ours: row[theirs] for ours, theirs in mapping.items() if theirs in row}


def missing(needs: Sequence[str], found: Sequence[str]) -> list[str]:
    """The needs that no column meets."""
    return [need for need in needs if not set(need.split("|")) & set(found)]


def _met(needs: Sequence[str], found: Sequence[str]) -> list[str]:
    return [next((name for name in need.split("|") if name in found), need) for need in needs]


def label_key(label: str) -> str:
    """What the spellings of a label share: `Factual Risk`, `factual_risk`."""
    return " ".join(re.split(r"[\s_-]+", label.strip().lower()))


def parse_label(label: str) -> Category:
    """The class that a label of a data set names, in any case: "Factual Risk", "EHD", "No risk".

    Raises: DataError for OTHER, which fits no class, and for unknown labels.
    """
    key = label_key(label)
    if key in _LABELS:
        return _LABELS[key]
    if key == UNDECIDED:
        raise DataError(
            f"category ({label!r}) must name a class; OTHER fits none, so label or drop the row"
        )
    names = ", ".join(category.value for category in Category)
    close = difflib.get_close_matches(key, _LABELS, n=1)
    hint = f"did you mean {_LABELS[close[0]].value}?" if close else "or a risk such as Factual Risk"
    raise DataError(f"category ({label[:80]!r}) must be one of {names}; {hint}")


def _readable(key: str, rows: Sequence[Row]) -> int:
    count = 0
    for row in rows:
        try:
            FORMATS[key].read(row)
        except OfNoUse:
            count += 1
        except DataError:
            continue
        else:
            count += 1
    return count


def _has_classes(rows: Sequence[Row]) -> bool:
    labels = [row["category"] for row in rows if isinstance(row.get("category"), str)]
    keys = [label_key(label) for label in labels]
    known = [key for key in keys if key in _LABELS or key == UNDECIDED]
    return bool(known) and 2 * len(known) >= len(keys)


def _unknown(found: Sequence[str], is_mapped: bool) -> str:
    closest = min(FORMATS, key=lambda key: len(missing(FORMATS[key].needs, found)))
    lacks = ", ".join(missing(FORMATS[closest].needs, found))
    given = ", ".join(found[:12]) or "none"
    where = "the columns that data.columns names" if is_mapped else "the columns"
    return (
        f"{where} ({given}) are those of no known format; closest is {closest}, which needs "
        f"{lacks} too; say what they hold, by the command's options of columns or as in "
        "data.columns: "
        f"{{prompt: {found[0] if found else 'text'}, response: ...}} (or chosen and rejected)"
    )
