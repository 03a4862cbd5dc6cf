"""Prompts from data sets of any format that is known, each row checked.

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

from equilibrate.config.inputs import InputFile
from equilibrate.data.recognition import Entry, Source
from equilibrate.data.records import Ids, OfNoUse, checked, named_by, said
from equilibrate.data.rows import CHARACTERS_PER_TOKEN, RejectedRows
from equilibrate.errors import DataError
from equilibrate.types import Category, Conversation, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRows:
    """What a prompt file holds."""

    prompts: list[Prompt]
    dropped: Mapping[str, int]
    """Rows left out, by reason."""
    about: str = ""
    """What the file was recognised as, and how prompts count for which it names no class."""


def read_prompts(
    path: str | Path,
    encode: Callable[[Any], list[int]],
    *,
    max_tokens: int,
    rejected: RejectedRows | None = None,
    columns: Mapping[str, str] | None = None,
) -> PromptRows:
    """As `PromptReader.read`, of a single file."""
    reader = PromptReader(encode, max_tokens=max_tokens, columns=columns)
    return reader.read(InputFile(file=str(path)), rejected)


class PromptReader:
    """Reads the prompts of one file after another, and remembers what it has seen: a prompt that
    stands in several counts in the first.

    Args:
        encode: text or conversation to token ids, exactly as the policy will see the prompt.
        max_tokens: longest prompt that leaves room for a response.
        columns: as of `Source`.
    """

    def __init__(
        self,
        encode: Callable[[Any], list[int]],
        *,
        max_tokens: int,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self._columns = columns
        self._encode = encode
        self._max_tokens = max_tokens
        self._first_by_text: dict[str | Conversation, tuple[str, Category]] = {}
        self._ids = Ids()

    def read(self, file: InputFile, rejected: RejectedRows | None = None) -> PromptRows:
        """The prompts of a file, answers or none beside them; of plain prompts also `id`, `cell`
        and `part`. A prompt counts in the class that its row names (`category`), else in that of
        the file, or that its format says of all of them (a set of harmful prompts: EHD); without
        one as GENERAL.

        Args: rejected: takes the rows that break a rule; by default none may.
        Raises: DataError with file:line, value and rule of the first broken rows, if they are too
            many; also if the file cannot be read or no usable row is left.
        """
        rejected = RejectedRows(file.path) if rejected is None else rejected
        self._file = file
        self._prompts: list[Prompt] = []
        self._dropped: Counter[str] = Counter()
        self._without_class = num_rows = 0
        source = Source(file.path, self._columns)
        for entry in source:
            num_rows += 1
            try:
                self._add(entry)
            except DataError as error:
                rejected.add(entry.where, str(error))
        rejected.settle(num_rows)
        self._ids.num_files += 1
        if not self._prompts:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self._dropped.items())
            raise DataError(
                f"{file.path} ({num_rows} rows) must hold at least one usable prompt"
                + (
                    f"; dropped: {reasons}"
                    if reasons
                    else "; give rows with `prompt` and `category`"
                )
            )
        about = source.recognised.why
        if self._without_class:
            about += f"; {self._without_class} prompts have no class and count as GENERAL"
        return PromptRows(prompts=self._prompts, dropped=dict(self._dropped), about=about)

    def _add(self, entry: Entry) -> None:
        """Raises: DataError without the place, which the caller knows."""
        if isinstance(entry.fault, OfNoUse):
            self._dropped[str(entry.fault)] += 1
            return
        if entry.record is None:
            raise entry.fault or DataError("must hold a prompt")
        record, where = entry.record, entry.where
        checked(record.messages[-1].content, "prompt")
        text, key = said(record.messages), record.prompt
        category = record.category or self._file.category or Category.GENERAL
        if key in self._first_by_text:
            self._drop_duplicate(key, record.category or self._file.category)
            return
        names = named_by(entry.named, record.kind)
        made = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        # Last: a row that is rejected keeps no id from another.
        prompt_id = self._ids.new(names.get("id", made), where)
        self._first_by_text[key] = (where, category)
        token_ids: tuple[int, ...] = ()
        reason = f"longer than {self._max_tokens} tokens"
        if len(text) <= CHARACTERS_PER_TOKEN * self._max_tokens:
            token_ids = tuple(self._encode(key))
            reason = self._reason_to_drop(token_ids)
        if reason:
            self._dropped[reason] += 1
            return
        self._prompts.append(
            Prompt(
                prompt_id=prompt_id,
                text=text,
                token_ids=token_ids,
                category=category,
                cell=names.get("cell") or self._file.name,
                part=names.get("part", ""),
                file_number=self._ids.num_files,
                messages=() if isinstance(key, str) else key,
            )
        )
        self._without_class += record.category is self._file.category is None

    def _drop_duplicate(self, key: str | Conversation, category: Category | None) -> None:
        where, first = self._first_by_text[key]
        if category is not None and first is not category:
            raise DataError(
                f"category ({category.value}) must agree with the same prompt at {where} "
                f"({first.value}); keep one of the two"
            )
        self._dropped["a second copy"] += 1

    def _reason_to_drop(self, token_ids: tuple[int, ...]) -> str:
        if not token_ids:
            return "without tokens"
        if len(token_ids) > self._max_tokens:
            return f"longer than {self._max_tokens} tokens"
        return ""
