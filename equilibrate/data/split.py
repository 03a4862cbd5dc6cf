"""One split over all data sets of a project, by prompt: `python -m equilibrate split`.

A prompt's part depends on its words, the seed and the shares alone: it stays where it is when
files are added, and no prompt stands in two parts, whichever files hold it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from filecmp import cmp
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from equilibrate.config.inputs import InputFile
from equilibrate.data.recognition import Source, parse_label, records_of
from equilibrate.data.records import Kind, Record, said
from equilibrate.data.rows import RejectedRows, prompt_key, words_of
from equilibrate.data.tables import rows_of
from equilibrate.errors import ConfigError, DataError
from equilibrate.types import Category

Shape = Literal["prompts", "answers", "pairs"]
"""Rows to be written: prompts alone; answers that are labelled safe or unsafe one by one, those of
pairs among them; or pairs."""


def file_of(text: str) -> InputFile:
    """`FILE`, or `CLASS=FILE`."""
    name, _, path = text.partition("=")
    if path and name.upper() in {category.value for category in Category}:
        return InputFile(file=path, category=parse_label(name))
    return InputFile(file=text)


def parts_of(texts: Sequence[str]) -> dict[str, float]:
    """`NAME=SHARE` of each part, as shares of all.

    Raises: ConfigError naming what is no part.
    """
    parts: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not name.isidentifier() or name in parts or not 0 < share < float("inf"):
            raise ConfigError(
                f"part {text!r} must be a name and a share above 0, each name once; "
                "for example train=0.8"
            )
        parts[name] = share
    total = sum(parts.values())
    return {name: share / total for name, share in parts.items()}


def part_of(record: Record, parts: Mapping[str, float], seed: int) -> str:
    """The part that a prompt falls in, by its words: case, punctuation and numbers do not count."""
    key = prompt_key(record.messages)
    digest = blake2b(f"{seed} {words_of(key) or key}".encode("utf-8", "surrogatepass"))
    place = int.from_bytes(digest.digest()[:8], "big") / 2**64
    for name, share in parts.items():
        place -= share
        if place < 0:
            return name
    return name  # the shares add up to 1, up to rounding


def split(
    files: Sequence[InputFile],
    parts: Mapping[str, float],
    out: Path,
    *,
    shape: Shape,
    seed: int,
    columns: Mapping[str, str],
    max_rejected_fraction: float,
    say: Callable[[str], None],
) -> None:
    """Write `out`/PART.jsonl of the rows of all files, in their order, each once.

    An answer that some row calls safe and some row unsafe is left out. Nothing is written where a
    file is refused, and what is there is never overwritten by something else.

    Raises: DataError as `Source` and `RejectedRows`, or if a part stays empty; ConfigError if `out`
        holds other parts.
    """
    if not files:
        raise ConfigError("no file is given; name one or more, as `data` takes them")
    sources = [(file, Source(file.file, columns)) for file in files]
    rows = _Rows(shape, _disputed(sources) if shape == "answers" else frozenset())
    counts: Counter[tuple[str, str]] = Counter()
    out.mkdir(parents=True, exist_ok=True)
    unfinished = {name: out / f".{name}.jsonl.tmp" for name in parts}
    try:
        with ExitStack() as stack:
            written = {
                name: stack.enter_context(place.open("w", encoding="utf-8"))
                for name, place in unfinished.items()
            }
            for file, source in sources:
                rejected = RejectedRows(file.path, max_fraction=max_rejected_fraction)
                for record in _records(file, source, rejected, rows.left_out):
                    name = part_of(record, parts, seed)
                    for row in rows.of(record):
                        written[name].write(row + "\n")
                        counts[file.file, name] += 1
        _require_rows(counts, parts)
        _put(unfinished, out)
    finally:  # half a part must not look like one
        for place in unfinished.values():
            place.unlink(missing_ok=True)
    for reason, count in rows.left_out.items():
        say(f"left out: {count} {reason}")
    for line in _counted(sources, parts, counts):
        say(line)


def _counted(
    sources: Sequence[tuple[InputFile, Source]],
    parts: Mapping[str, float],
    counts: Counter[tuple[str, str]],
) -> Iterator[str]:
    for file, source in sources:
        found = ", ".join(f"{name} {counts[file.file, name]}" for name in parts)
        yield f"{file.file}: {source.recognised.name}; {found}"
    totals = {name: sum(counts[file.file, name] for file, _ in sources) for name in parts}
    yield "in all: " + ", ".join(f"{name} {count}" for name, count in totals.items())


def _records(
    file: InputFile, source: Source, rejected: RejectedRows, left_out: Counter[str]
) -> Iterator[Record]:
    unread: Counter[str] = Counter()
    num_records = 0
    for _, record in records_of(source, rejected, unread):
        num_records += 1
        yield replace(record, category=record.category or file.category)
    left_out.update(unread)
    rejected.settle(num_records + len(rejected) + unread.total())


class _Rows:
    """Records as lines of JSON of one shape, each once: of copies the first, whatever class another
    file gives it."""

    def __init__(self, shape: Shape, disputed: frozenset[bytes]) -> None:
        self.left_out: Counter[str] = Counter()
        self._shape = shape
        self._disputed = disputed
        self._seen: set[bytes] = set()

    def of(self, record: Record) -> Iterator[str]:
        for row in self._shaped(record):
            text = json.dumps(row, ensure_ascii=False)
            key = _digest(text if self._shape == "pairs" else _key(record, row))
            if key in self._seen:
                self.left_out["a second copy"] += 1
            else:
                self._seen.add(key)
                yield text

    def _shaped(self, record: Record) -> Iterator[dict[str, Any]]:
        prompt: dict[str, Any] = {"prompt": _written(record)}
        if record.category is not None:
            prompt["category"] = record.category.value
        if self._shape == "prompts":
            yield prompt
        elif self._shape == "answers":
            yield from self._labelled(record, prompt)
        elif record.kind is Kind.PAIR:
            (row,) = rows_of(record)
            yield {name: value for name, value in row.items() if value is not None} | prompt
        else:
            self.left_out["without a pair"] += 1

    def _labelled(self, record: Record, prompt: dict[str, Any]) -> Iterator[dict[str, Any]]:
        labelled = [
            prompt | {"response": response, "is_safe": is_safe}
            for response, is_safe in zip(record.responses, record.is_safe, strict=True)
            if is_safe is not None
        ]
        if not labelled:
            self.left_out["without a label of safety"] += 1
        for row in labelled:
            if _digest(_key(record, row)) in self._disputed:
                self.left_out["safe in one row and unsafe in another"] += 1
            else:
                yield row


def _disputed(sources: Sequence[tuple[InputFile, Source]]) -> frozenset[bytes]:
    """Answers that are safe in one row and unsafe in another."""
    verdicts: dict[bytes, int] = {}
    for _, source in sources:
        for record in (entry.record for entry in source if entry.record is not None):
            for response, is_safe in zip(record.responses, record.is_safe, strict=True):
                if is_safe is not None:
                    key = _digest(_key(record, {"response": response}))
                    verdicts[key] = verdicts.get(key, 0) | 1 << is_safe
    return frozenset(key for key, verdict in verdicts.items() if verdict == 3)


def _written(record: Record) -> str | list[dict[str, str]]:
    prompt = record.prompt
    return prompt if isinstance(prompt, str) else [asdict(turn) for turn in prompt]


def _key(record: Record, row: Mapping[str, Any]) -> str:
    return "\0".join((said(record.messages), row.get("response", "")))


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _require_rows(counts: Counter[tuple[str, str]], parts: Mapping[str, float]) -> None:
    filled = {name for (_, name), count in counts.items() if count}
    if empty := [name for name in parts if name not in filled]:
        raise DataError(
            f"part {empty[0]} would hold no row; give more data, or a larger share than "
            f"{parts[empty[0]]:.3g}"
        )


def _put(unfinished: Mapping[str, Path], out: Path) -> None:
    for name, place in unfinished.items():
        target = out / f"{name}.jsonl"
        if target.exists() and not cmp(place, target, shallow=False):
            raise ConfigError(
                f"{target}: is there and differs from what these files give; choose another --out, "
                "or remove it"
            )
    for name, place in unfinished.items():
        place.replace(out / f"{name}.jsonl")
