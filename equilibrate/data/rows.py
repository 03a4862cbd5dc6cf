"""Rows that people bring: what a text may hold, and those that break a rule are set apart.

And no prompt both trains and evaluates (`check_disjoint`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from equilibrate.errors import ConfigError, DataError, ResourceError
from equilibrate.types import Conversation, Prompt, as_conversation

MAX_REPORTED = 5
"""Broken rows that one message spells out; the file of rejected rows holds all of them."""
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
        limit: what the user calls `max_fraction`.
    Raises: ConfigError for a `max_fraction` that is no share.
    """

    def __init__(
        self,
        source: Path,
        *,
        max_fraction: float = 0.0,
        file: Path | None = None,
        limit: str = "data.max_rejected_fraction",
    ) -> None:
        if not 0 <= max_fraction <= 1:
            raise ConfigError(f"{limit} ({max_fraction:g}) must be from 0 to 1; try 0.01")
        self._limit = limit
        self._source = source
        self._max_fraction = max_fraction
        self._file = file
        self._rows: list[dict[str, str]] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> Sequence[Mapping[str, str]]:
        """`source`, `where` and `rule` of each."""
        return self._rows

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
                f"{len(self)} of {num_rows} rows break a rule, and {self._limit} "
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


def require_writable_file(file: Path, *, but: Iterable[Path] = ()) -> None:
    """Refuse a file that could not be written, without making it: work may take hours before.

    Args: but: inputs, none of which it may be.
    Raises: ConfigError for an input, ResourceError naming what stands in the way.
    """
    if file.resolve() in {one.resolve() for one in but}:
        raise ConfigError(f"output ({file}) must not be an input; name another file")
    place = next(path for path in (file, *file.absolute().parents) if path.exists())
    if place.is_dir() == (place == file):
        kind = "a folder" if place.is_dir() else "a file"
        raise ResourceError(f"{file}: cannot be written: {place} is {kind}; name another file")
    if not os.access(place, os.W_OK | (os.X_OK if place.is_dir() else 0)):
        raise ResourceError(f"{file}: cannot be written: {place} is closed to this user")


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


def counted(number: int, thing: str) -> str:
    """For example `1 row`, `2 rows`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def shown(value: object) -> str:
    """The beginning of a value, for a message."""
    text = ascii(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_disjoint(train_prompts: Iterable[Prompt], eval_prompts: Iterable[Prompt]) -> None:
    """Refuse an evaluation prompt that training also sees, compared by `prompt_key`.

    Raises: DataError with the first such prompt and their number.
    """
    seen = {prompt_key(prompt.conversation): prompt.prompt_id for prompt in train_prompts}
    leaked = [prompt for prompt in eval_prompts if prompt_key(prompt.conversation) in seen]
    if leaked:
        first = leaked[0]
        raise DataError(
            f"evaluation prompt {first.prompt_id!r} ({first.text[:80]!r}) must not be in the "
            f"training prompts, where it is {seen[prompt_key(first.conversation)]!r}; remove these "
            f"{len(leaked)} from one of the two files"
        )


def prompt_key(prompt: str | Conversation) -> str:
    """What two prompts share that ask the same: the user's turns without case and spacing.

    What the system says is not in it: under another system prompt a prompt is known all the same.
    """
    turns = as_conversation(prompt)
    return " ".join(
        word for turn in turns if turn.role == "user" for word in turn.content.casefold().split()
    )


def words_of(text: str) -> str:
    """A text by its words in their order, whatever their case, punctuation and numbers: what two
    near duplicates share. Other words, even one, make two texts differ."""
    return " ".join(re.sub(r"\d+", "0", word) for word in re.findall(r"\w+", text.casefold()))
