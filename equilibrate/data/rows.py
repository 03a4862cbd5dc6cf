"""Rows that people bring, one by one with their places; those that break a rule are set apart.

And no prompt both trains and evaluates (`check_disjoint`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from equilibrate.errors import DataError
from equilibrate.types import Prompt

MAX_REPORTED = 5
"""Broken rows that one message spells out; the file of rejected rows holds all of them."""
MAX_ROW_BYTES = 8 * 2**20
"""Of one JSON line: more text than the context of any model takes, read without holding it."""
CHARACTERS_PER_TOKEN = 50
"""A text with more than this for each token there is room for is too long, without tokenizing it
(10 MB take 20 s). Ordinary text has 2 to 6."""
REJECTED_FILE = "rejected.jsonl"
"""In the folder of a run: rows of its inputs that break a rule, with the rule."""

_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")


class RejectedRows:
    """The rows of one file that break a rule: they are left out, up to a limit.

    Args:
        source: the file or folder that is read.
        max_fraction: share of its rows that may be rejected.
        file: where they are written down, a JSON line each with `where` and `rule`; rows of other
            sources in it stay.
    """

    def __init__(
        self, source: Path, *, max_fraction: float = 0.0, file: Path | None = None
    ) -> None:
        self._source = source
        self._max_fraction = max_fraction
        self._file = file
        self._rows: list[dict[str, str]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, where: str, rule: str) -> None:
        self._rows.append({"source": str(self._source), "where": where, "rule": rule})

    def settle(self, num_rows: int) -> None:
        """Write them down, and refuse the source if they are too many.

        Args: num_rows: all that were read.
        Raises: DataError with place and rule of the first.
        """
        if self._file is not None:
            self._write(self._file)
        # 0.29 of 100 rows are 29, though their product is a hair less.
        allowed = int(self._max_fraction * num_rows + 1e-9)
        if len(self) <= allowed:
            return
        lines = [f"{row['where']}: {row['rule']}" for row in self._rows[:MAX_REPORTED]]
        if len(self) > MAX_REPORTED:
            lines.append(f"... and {len(self) - MAX_REPORTED} more")
        if self._file is not None or allowed:
            lines.append(
                f"{len(self)} of {num_rows} rows break a rule, and data.max_rejected_fraction "
                f"({self._max_fraction:g}) allows {allowed}"
                + (f"; all are in {self._file}" if self._file is not None else "")
            )
        raise DataError("\n".join(lines))

    def _write(self, file: Path) -> None:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        rows = [json.loads(line) for line in lines]
        rows = [row for row in rows if row["source"] != str(self._source)] + self._rows
        if rows or file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path, columns: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Place (`file:line` or `folder:row`) and content of each row of a file of JSON lines or of a
    folder written by `Dataset.save_to_disk`; a row that cannot be read comes as its DataError.

    Args: columns: of a folder, all that is wanted of it; empty for all there is.
    Raises: DataError if the file or folder cannot be read.
    """
    return _folder_rows(path, columns) if path.is_dir() else _file_rows(path)


def text_fault(value: object, *, may_be_empty: bool = False) -> str:
    """The rule that a text breaks; "" if none."""
    if not isinstance(value, str):
        return "must be a string"
    if not value.strip() and not may_be_empty:
        return "must not be empty"
    if "\0" in value:
        return "must not contain a NUL character; remove it"
    if _HALF_OF_A_PAIR.search(value):
        return "must be valid Unicode; it has half of a surrogate pair"
    return ""


def shown(value: object) -> str:
    """The beginning of a value, for a message."""
    text = ascii(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    yield f"{path}:{number}", _parse_line(content)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a JSON-lines file or a dataset folder"
        ) from None


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Each line, of a longer one the first MAX_ROW_BYTES and one more."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_ROW_BYTES)
        yield line


def _parse_line(line: bytes) -> object:
    if len(line) > MAX_ROW_BYTES:
        return DataError(
            f"({shown(line[:40])}...) must have at most {MAX_ROW_BYTES >> 20} MiB; leave it out"
        )
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return DataError(f"({shown(line[error.start : error.end])}) must be UTF-8 text")
    except (ValueError, RecursionError) as error:
        return DataError(f"({shown(line[:40].rstrip())}) must be one JSON object ({error})")


def _folder_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # Slow to import, and most runs of the unit tests never need it.
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except IndexError:
        # How `datasets` 5 meets a set that was saved without a row.
        return
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: is not a folder written by Dataset.save_to_disk ({error})"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        splits = ", ".join(loaded)
        raise DataError(
            f"{path}: must be one split, not a set of splits ({splits}); "
            f"try {path / next(iter(loaded), '')}"
        )
    if columns:
        loaded = loaded.select_columns([name for name in loaded.column_names if name in columns])
    for number, row in enumerate(loaded):
        yield f"{path}:{number}", row


def check_disjoint(train_prompts: Iterable[Prompt], eval_prompts: Iterable[Prompt]) -> None:
    """Refuse an evaluation prompt that training also sees, compared without case and spacing.

    Raises: DataError with the first such prompt and their number.
    """
    seen = {_normalised(prompt.text): prompt.prompt_id for prompt in train_prompts}
    leaked = [prompt for prompt in eval_prompts if _normalised(prompt.text) in seen]
    if leaked:
        first = leaked[0]
        raise DataError(
            f"evaluation prompt {first.prompt_id!r} ({first.text[:80]!r}) must not be in the "
            f"training prompts, where it is {seen[_normalised(first.text)]!r}; remove these "
            f"{len(leaked)} from one of the two files"
        )


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())
