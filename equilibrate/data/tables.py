"""Data sets of labelled answers, read by column."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from equilibrate.data.columns import Columns, RowError, require_columns
from equilibrate.data.recognition import Source, records_of
from equilibrate.data.records import Kind, Record
from equilibrate.data.rows import RejectedRows
from equilibrate.errors import DataError
from equilibrate.types import Category

SFT_COLUMNS = ("prompt", "response")

View = Callable[[Columns], object]
"""Reads what it needs of a data set of any length. Raises: RowError for a row it cannot read."""

Choice = Callable[[Columns], Sequence[int | str]]
"""Of each row the number of the response to learn, or why it teaches nothing; () for no choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A data set, and where its rows stand."""

    columns: Columns
    places: Sequence[str]
    """`file:line` or `folder:row` of each row."""
    about: str = ""
    """What it was recognised as, and by what."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows of no use, by reason."""

    def taught(self, choose: Choice) -> Table:
        """With `preferred_response_id`, or without the rows that `choose` says teach nothing."""
        chosen = choose(self.columns)
        if not chosen:
            return self
        left_out = Counter(self.left_out) + Counter(
            number for number in chosen if isinstance(number, str)
        )
        kept = [row for row, number in enumerate(chosen) if not isinstance(number, str)]
        columns = {name: [values[row] for row in kept] for name, values in self.columns.items()}
        if "response_0" in columns:
            columns["preferred_response_id"] = [chosen[row] for row in kept]
        places = [self.places[row] for row in kept]
        return replace(self, columns=columns, places=places, left_out=left_out)

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


def load_table(
    path: Path,
    columns: Sequence[str],
    rejected: RejectedRows,
    *,
    mapping: Mapping[str, str] | None = None,
    category: Category | None = None,
) -> Table:
    """A data set of any format and kind that `Source` reads, as prompts with their answers.

    Columns are prompt (text, or a conversation), category where the data have our classes; of
    answers response, is_safe and is_good; of pairs response_0 and response_1, is_response_0_safe,
    is_response_1_safe, better_response_id, safer_response_id and preferred_response_id. None is
    where a row does not say; a column of which no row says anything is not there.

    Args:
        columns: those that it must have.
        rejected: takes the rows that break a rule; it is not settled here.
        mapping: as of `Source`.
        category: class of the rows that name none.
    Raises: DataError, naming the file or folder and the column, if it is missing, empty or cannot
        be read.
    """
    source = Source(path, mapping)
    table = _Building()
    for entry, record in records_of(source, rejected, table.left_out):
        table.add(entry.where, replace(record, category=record.category or category))
    if not table.places:
        rejected.settle(len(rejected))
        raise DataError(f"{path}: the data set is empty; give at least one row")
    built = table.built(source.recognised.why)
    try:
        require_columns(built.columns, columns)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return built


def load_columns(path: Path, columns: Sequence[str]) -> Columns:
    """The columns of `load_table`. Raises: DataError also for the first broken line."""
    rejected = RejectedRows(path)
    table = load_table(path, columns, rejected)
    rejected.settle(len(table.places) + len(rejected))
    return table.columns


def joined(tables: Sequence[Columns], *, may_mix: bool) -> Columns:
    """Data sets one after another, each of which its reader can read alone.

    Args: may_mix: take pairs and single answers together, as `parted` finds them again.
    Raises: DataError if some hold pairs and some single answers, and they may not be mixed.
    """
    if len(tables) == 1:
        return tables[0]
    has_pairs, has_singles = (
        any(name in table for table in tables) for name in ("response_0", "response")
    )
    if has_pairs and has_singles and not may_mix:
        raise DataError(
            "some files hold pairs and some single answers, and a training takes one kind, but for "
            "objective.type=cost and scorer; leave the others out"
        )
    names = dict.fromkeys(name for table in tables for name in table)
    # Answers of a file that states no safety count as safe, beside others as alone.
    blank = {
        "category": Category.GENERAL.value,
        "is_response_0_safe": True,
        "is_response_1_safe": True,
    }
    return {
        name: [
            value
            for table in tables
            for value in table.get(name, [blank.get(name)] * len(table["prompt"]))
        ]
        for name in names
    }


def _fault(row: Columns, view: View) -> str:
    try:
        view(row)
    except RowError as error:
        return str(error).partition(", ")[2]
    except DataError:
        # For example a pair that holds one answer twice: readable, and left out by the view.
        return ""
    return ""


def columns_of(records: Iterable[Record]) -> Columns:
    """Records as `load_table` lays them out."""
    table = _Building()
    for record in records:
        table.add("", record)
    return table.built("").columns


class _Building:
    def __init__(self) -> None:
        self.places: list[str] = []
        self.left_out: Counter[str] = Counter()
        self._columns: dict[str, list[Any]] = defaultdict(list)

    def add(self, where: str, record: Record) -> None:
        for row in rows_of(record):
            for name, value in row.items():
                column = self._columns[name]
                column += [None] * (len(self.places) - len(column))
                column.append(value)
            self.places.append(where)

    def built(self, about: str) -> Table:
        for column in self._columns.values():
            column += [None] * (len(self.places) - len(column))
        said = {
            name: values
            for name, values in self._columns.items()
            if any(value is not None for value in values)
        }
        if "category" in said:
            said["category"] = [name or Category.GENERAL.value for name in said["category"]]
        return Table(columns=said, places=self.places, about=about, left_out=self.left_out)


def rows_of(record: Record) -> Iterator[dict[str, Any]]:
    """A record as rows with the columns of `load_table`: one, or one for each single answer."""
    row: dict[str, Any] = {
        "prompt": record.prompt,
        "category": record.category and record.category.value,
    }
    if record.kind is Kind.PAIR:
        for side in (0, 1):
            row[f"response_{side}"] = record.responses[side]
            row[f"is_response_{side}_safe"] = record.is_safe[side]
        yield row | {
            "better_response_id": record.better,
            "safer_response_id": record.safer,
            "preferred_response_id": record.preferred,
        }
    elif not record.responses:
        yield row
    for response, is_safe in zip(record.responses, record.is_safe, strict=True):
        if record.kind is not Kind.PAIR:
            yield row | {"response": response, "is_safe": is_safe, "is_good": record.is_good}
