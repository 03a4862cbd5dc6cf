"""Prompts from JSON lines or a Hugging Face dataset folder, each row checked.

A row that breaks a rule is rejected, and too many of them stop the run before any work is done; a
row that is merely of no use here (a second copy, too long, of no class) is dropped and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equilibrate.data.rows import (
    CHARACTERS_PER_TOKEN,
    RejectedRows,
    read_rows,
    shown,
    text_fault,
)
from equilibrate.errors import DataError
from equilibrate.fdc.categories import UNDECIDED, parse_label
from equilibrate.types import Category, Prompt

_COLUMNS = ("prompt", "category", "id", "cell", "part")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRows:
    """What a prompt file holds."""

    prompts: list[Prompt]
    dropped: Mapping[str, int]
    """Rows left out, by reason."""


def read_prompts(
    path: str | Path,
    encode: Callable[[str], list[int]],
    *,
    max_tokens: int,
    rejected: RejectedRows | None = None,
) -> PromptRows:
    """Read rows with `prompt`, `category` and optionally `id`, `cell`, `part`; others stay out.

    Args:
        path: a JSON-lines file, or a folder written by `datasets.Dataset.save_to_disk`.
        encode: text to token ids, exactly as the policy will see the prompt.
        max_tokens: longest prompt that leaves room for a response.
        rejected: takes the rows that break a rule; by default none may.

    Raises: DataError with file:line, value and rule of the first broken rows, if they are too many;
        also if the file cannot be read or no usable row is left.
    """
    path = Path(path)
    reader = _Reader(encode, max_tokens)
    rejected = RejectedRows(path) if rejected is None else rejected
    num_rows = 0
    for where, row in read_rows(path, _COLUMNS):
        num_rows += 1
        try:
            reader.add(where, row)
        except DataError as error:
            rejected.add(where, str(error))
    rejected.settle(num_rows)
    if not reader.prompts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in reader.dropped.items())
        raise DataError(
            f"{path} ({num_rows} rows) must hold at least one usable prompt"
            + (f"; dropped: {reasons}" if reasons else "; give rows with `prompt` and `category`")
        )
    return PromptRows(prompts=reader.prompts, dropped=dict(reader.dropped))


class _Reader:
    """Turns rows into prompts, one after another, and remembers what it has seen."""

    def __init__(self, encode: Callable[[str], list[int]], max_tokens: int) -> None:
        self.prompts: list[Prompt] = []
        self.dropped: Counter[str] = Counter()
        self._encode = encode
        self._max_tokens = max_tokens
        self._first_by_text: dict[str, tuple[str, Category]] = {}
        self._where_by_id: dict[str, str] = {}

    def add(self, where: str, row: object) -> None:
        """Raises: DataError without the place, which the caller knows."""
        if isinstance(row, DataError):
            raise row
        if not isinstance(row, dict):
            raise DataError(f"({shown(row)}) must be a JSON object with `prompt` and `category`")
        text = _checked_text(row, "prompt")
        label = _checked_text(row, "category")
        if label.strip().lower() == UNDECIDED:
            self.dropped["of no class (OTHER)"] += 1
            return
        category = parse_label(label)
        if text in self._first_by_text:
            self._drop_duplicate(text, category)
            return
        cell, part = (
            "" if row.get(key) is None else _checked_text(row, key, may_be_empty=True)
            for key in ("cell", "part")
        )
        # Last: a row that is rejected keeps no id from another.
        prompt_id = self._new_id(row, text, where)
        self._first_by_text[text] = (where, category)
        token_ids: tuple[int, ...] = ()
        reason = f"longer than {self._max_tokens} tokens"
        if len(text) <= CHARACTERS_PER_TOKEN * self._max_tokens:
            token_ids = tuple(self._encode(text))
            reason = self._reason_to_drop(token_ids)
        if reason:
            self.dropped[reason] += 1
            return
        self.prompts.append(
            Prompt(
                prompt_id=prompt_id,
                text=text,
                token_ids=token_ids,
                category=category,
                cell=cell,
                part=part,
            )
        )

    def _drop_duplicate(self, text: str, category: Category) -> None:
        where, first = self._first_by_text[text]
        if first is not category:
            raise DataError(
                f"category ({category.value}) must agree with the same prompt at {where} "
                f"({first.value}); keep one of the two"
            )
        self.dropped["a second copy"] += 1

    def _reason_to_drop(self, token_ids: tuple[int, ...]) -> str:
        if not token_ids:
            return "without tokens"
        if len(token_ids) > self._max_tokens:
            return f"longer than {self._max_tokens} tokens"
        return ""

    def _new_id(self, row: Mapping[str, Any], text: str, where: str) -> str:
        given = row.get("id")
        if isinstance(given, int) and not isinstance(given, bool):
            given = str(given)
        if given is None:
            given = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        else:
            given = _checked_text({"id": given}, "id")
        if given in self._where_by_id:
            raise DataError(
                f"id ({shown(given)}) must be unique, but {self._where_by_id[given]} has it too; "
                "leave `id` out to have one made from the text"
            )
        self._where_by_id[given] = where
        return given


def _checked_text(row: Mapping[str, Any], key: str, *, may_be_empty: bool = False) -> str:
    if key not in row:
        present = ", ".join(map(repr, list(row)[:8])) or "no keys"
        raise DataError(f"needs the key {key!r}; the row has {present}")
    fault = text_fault(row[key], may_be_empty=may_be_empty)
    if fault:
        raise DataError(f"{key} ({shown(row[key])}) {fault}")
    return str(row[key])
