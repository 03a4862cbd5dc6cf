"""One split over all data sets of a project, by prompt: `python -m equilibrate split`.

A prompt's part depends on its words, the seed and the parts' names and shares alone, in whatever
order they are given: it stays where it is when files are added, and no prompt stands in two parts,
whichever files hold it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from filecmp import cmp
from hashlib import blake2b
from math import fsum
from pathlib import Path
from typing import Any, Literal

from equilibrate.config.inputs import MAX_SHARE, MIN_SHARE, InputFile, named_twice
from equilibrate.data.recognition import Entry, Source, parse_label, records_of
from equilibrate.data.records import Ids, Kind, Record, named_by, said
from equilibrate.data.rows import RejectedRows, counted, prompt_key, words_of
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
        if not name.isidentifier() or name in parts or not MIN_SHARE <= share <= MAX_SHARE:
            raise ConfigError(
                f"part {text!r} must be a name and a share from {MIN_SHARE:g} to {MAX_SHARE:g}, "
                "each name once; for example train=0.8"
            )
        parts[name] = share
    if not parts:
        raise ConfigError("--parts is given without any; try --parts train=0.9 test=0.1")
    total = fsum(parts.values())  # the same in any order
    return {name: share / total for name, share in parts.items()}


def part_of(record: Record, parts: Mapping[str, float], seed: int) -> str:
    """The part that a prompt falls in, by its words: case, punctuation and numbers do not count."""
    key = prompt_key(record.messages)
    digest = blake2b(f"{seed} {words_of(key) or key}".encode("utf-8", "surrogatepass"))
    place = int.from_bytes(digest.digest()[:8], "big") / 2**64
    for name in sorted(parts):
        place -= parts[name]
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

    What rows say of one another in contradiction is left out. Nothing is written where a file is
    refused, and what is there is never overwritten by something else.

    Raises: DataError as `Source` and `RejectedRows`, for an empty file, or if a part stays empty;
        ConfigError for a file that stands there twice, or if `out` holds other parts or lies in an
        input.
    """
    _require_places(files, parts, out)
    rejected = [
        RejectedRows(file.path, max_fraction=max_rejected_fraction, limit="--max-rejected-fraction")
        for file in files
    ]
    sources = [Source(file.file, columns) for file in files]
    rows = _Rows(shape, sources)
    counts: Counter[tuple[str, str]] = Counter()
    with _unfinished(parts, out) as places:
        with ExitStack() as stack:
            written = {
                name: stack.enter_context(place.open("w", encoding="utf-8"))
                for name, place in places.items()
            }
            for file, source, of_file in zip(files, sources, rejected, strict=True):
                for record, row in rows.of(file, source, of_file):
                    name = part_of(record, parts, seed)
                    written[name].write(json.dumps(row, ensure_ascii=False) + "\n")
                    counts[file.file, name] += 1
        _require_rows(counts, parts, rows.left_out)
        _put(places, out)
    for reason, count in rows.left_out.items():
        say(f"left out: {count} {reason}")
    for file, source, of_file in zip(files, sources, rejected, strict=True):
        found = ", ".join(f"{name} {counts[file.file, name]}" for name in parts)
        broken = f"; {counted(len(of_file), 'row')} broken and left out" if of_file else ""
        say(f"{file.file}: {source.recognised.name}; {found}{broken}")
    totals = {name: sum(counts[file.file, name] for file in files) for name in parts}
    say("in all: " + ", ".join(f"{name} {count}" for name, count in totals.items()))


@contextmanager
def _unfinished(parts: Iterable[str], out: Path) -> Iterator[dict[str, Path]]:
    """A place for each part: half of one must not look whole, nor an empty folder like a split."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    places = {name: out / f".{name}.jsonl.tmp" for name in parts}
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield places
    finally:
        for place in places.values():
            place.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _require_places(files: Sequence[InputFile], parts: Mapping[str, float], out: Path) -> None:
    if not files:
        raise ConfigError("no file is given; name one or more, as `data` takes them")
    if twice := named_twice(files):
        raise ConfigError(f"{twice}; name each file once")
    whole = out.resolve()
    for folder in (file.path for file in files if file.path.is_dir()):
        if folder.resolve() in (whole, *whole.parents):
            raise ConfigError(
                f"--out ({out}) must not lie in {folder}, which is read; choose another"
            )
    ours = {f"{name}.jsonl" for name in parts}
    others = sorted(file.name for file in out.glob("[!.]*.jsonl") if file.name not in ours)
    if others:
        raise ConfigError(
            f"{out / others[0]}: is there and is no part of this split ({', '.join(parts)}); "
            "choose another --out, or remove it"
        )


class _Rows:
    """Rows of one shape, each once: of copies the first."""

    def __init__(self, shape: Shape, sources: Sequence[Source]) -> None:
        self.left_out: Counter[str] = Counter()
        self._shape = shape
        self._disputed = _disputed(shape, sources)
        self._seen: dict[bytes, Category | None] = {}
        self._ids = Ids()

    def of(
        self, file: InputFile, source: Source, rejected: RejectedRows
    ) -> Iterator[tuple[Record, dict[str, Any]]]:
        """The rows of a file, with the records that they are made of."""
        unread: Counter[str] = Counter()
        num_records = 0
        for entry, record in records_of(source, rejected, unread):
            record = replace(record, category=record.category or file.category)
            try:
                for row in self._once(entry, record):
                    yield record, row
                num_records += 1
            except DataError as error:
                rejected.add(entry.where, str(error))
        self.left_out.update(unread)
        num_rows = num_records + len(rejected) + unread.total()
        rejected.settle(num_rows)
        if not num_rows:
            raise DataError(f"{file.path}: the data set is empty; give at least one row")
        self._ids.num_files += 1

    def _once(self, entry: Entry, record: Record) -> Iterator[dict[str, Any]]:
        names = named_by(entry.named, record.kind) if self._shape == "prompts" else {}
        for key, row in self._shaped(record):
            if key in self._disputed:
                self.left_out[_DISPUTED[self._shape]] += 1
            elif key not in self._seen:
                if "id" in names:
                    names["id"] = self._ids.new(names["id"], entry.where)
                self._seen[key] = record.category
                yield row | names
            elif record.category in (None, self._seen[key]):
                self.left_out["a second copy"] += 1
            else:
                self.left_out["a copy in another class than the first"] += 1

    def _shaped(self, record: Record) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Rows, each by what is the same in its copies."""
        text = said(record.messages)
        prompt: dict[str, Any] = {"prompt": _written(record)}
        if record.category is not None:
            prompt["category"] = record.category.value
        if self._shape == "prompts":
            yield _digest(text), prompt
        elif self._shape == "answers":
            if not record.responses:
                self.left_out["without an answer"] += 1
            for response, is_safe in zip(record.responses, record.is_safe, strict=True):
                if is_safe is None:
                    self.left_out["without a label of safety"] += 1
                else:
                    labelled = {"response": response, "is_safe": is_safe}
                    yield _digest(text, response), prompt | labelled
        elif record.kind is Kind.PAIR:
            (row,) = rows_of(record)
            said_of_it = {name: value for name, value in row.items() if value is not None}
            yield _digest(text, *sorted(record.responses)), said_of_it | prompt
        else:
            self.left_out["without a pair"] += 1


_DISPUTED: Mapping[Shape, str] = {
    "answers": "safe in one row and unsafe in another",
    "pairs": "labelled otherwise in another row",
}


def _disputed(shape: Shape, sources: Sequence[Source]) -> frozenset[bytes]:
    """Answers or pairs of which some row says a thing and some row the opposite."""
    verdicts: dict[bytes, int] = {}
    for source in sources if shape in _DISPUTED else ():
        for record in (entry.record for entry in source if entry.record is not None):
            for key, claims in _claims(shape, record):
                for place, claim in enumerate(claims):
                    if claim is not None:
                        verdicts[key] = verdicts.get(key, 0) | 1 << 2 * place + claim
    both = sum(1 << 2 * place for place in range(5))
    return frozenset(key for key, told in verdicts.items() if told & told >> 1 & both)


def _claims(shape: Shape, record: Record) -> Iterator[tuple[bytes, tuple[bool | None, ...]]]:
    """What a record says of each answer, or of its pair, whichever side comes first."""
    text = said(record.messages)
    if shape == "answers":
        for response, is_safe in zip(record.responses, record.is_safe, strict=True):
            yield _digest(text, response), (is_safe,)
    elif record.kind is Kind.PAIR:
        first = int(record.responses[0] > record.responses[1])
        chosen = (record.better, record.safer, record.preferred)
        yield (
            _digest(text, *sorted(record.responses)),
            (
                record.is_safe[first],
                record.is_safe[1 - first],
                *(None if number is None else number == first for number in chosen),
            ),
        )


def _written(record: Record) -> str | list[dict[str, str]]:
    prompt = record.prompt
    return prompt if isinstance(prompt, str) else [asdict(turn) for turn in prompt]


def _digest(*texts: str) -> bytes:
    return blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _require_rows(
    counts: Counter[tuple[str, str]], parts: Mapping[str, float], left_out: Mapping[str, int]
) -> None:
    filled = {name for (_, name), count in counts.items() if count}
    if empty := [name for name in parts if name not in filled]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(
            f"part {empty[0]} would hold no row"
            + (f" (left out: {reasons})" if reasons else "")
            + f"; give more data, or a larger share than {parts[empty[0]]:.3g}"
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
