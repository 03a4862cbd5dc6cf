"""What data sets hold, before anything learns from them: `python -m equilibrate data`.

Rows pass one by one; what stays of each is hashes and lengths.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations, islice
from pathlib import Path
from typing import get_args

import numpy as np

from equilibrate.data.answers import Prefer, choices
from equilibrate.data.formats import FORMATS
from equilibrate.data.readers import splits_of
from equilibrate.data.recognition import PERSONAL, Entry, Recognised, Source
from equilibrate.data.records import Kind, OfNoUse, Record, said
from equilibrate.data.rows import RejectedRows, prompt_key, words_of
from equilibrate.data.tables import columns_of
from equilibrate.errors import DataError
from equilibrate.text.renderer import Renderer

BATCH_ROWS = 256
"""Rows that are tokenized together."""

Lengths = Callable[[Sequence[Record]], tuple[list[int], list[int]]]
"""Of some records: lengths of the prompts, and of the answers."""


@dataclass(slots=True, kw_only=True)
class Survey:
    """What one data set holds."""

    source: str
    recognised: Recognised
    is_evaluation: bool
    num_rows: int = 0
    num_rejected: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    conflicts: Counter[str] = field(default_factory=Counter)
    taught: Counter[str] = field(default_factory=Counter)
    """Rows that a policy learns from, by `data.prefer`."""
    personal: set[str] = field(default_factory=set)
    prompt_lengths: array[int] = field(default_factory=lambda: array("q"))
    answer_lengths: array[int] = field(default_factory=lambda: array("q"))
    rows_seen: Counter[int] = field(default_factory=Counter)
    prompts_seen: Counter[int] = field(default_factory=Counter)
    near_prompts: set[int] = field(default_factory=set)
    """Prompts by their words alone."""
    verdicts: dict[int, int] = field(default_factory=dict)
    """Of each answer to a prompt 1 if a row calls it unsafe, plus 2 if one calls it safe."""

    def add(self, record: Record) -> None:
        self.kinds[record.kind.value] += 1
        self.classes[record.category.value if record.category else ""] += 1
        key = prompt_key(record.messages)
        whole = (said(record.messages), *record.responses)
        self.rows_seen[_hash(*whole)] += 1
        self.prompts_seen[_hash(key)] += 1
        self.near_prompts.add(_hash(words_of(key)))
        for response, is_safe in zip(record.responses, record.is_safe, strict=True):
            if is_safe is not None:
                answer = _hash(key, response)
                self.verdicts[answer] = self.verdicts.get(answer, 0) | 1 << is_safe
        if record.kind is Kind.PAIR:
            self.conflicts.update(conflicts_of(record))
        if record.responses:
            columns = columns_of([record])
            for prefer in get_args(Prefer):
                chosen = choices(columns, prefer)
                self.taught[prefer] += any(not isinstance(choice, str) for choice in chosen)


def survey(
    path: str | Path,
    *,
    lengths: Lengths,
    rejected: RejectedRows,
    columns: Mapping[str, str] | None = None,
) -> Survey:
    """Read a data set once.

    Args:
        rejected: takes the rows that break a rule; it is not settled here.
        columns: as of `Source`.
    Raises: DataError as `Source`.
    """
    source = Source(path, columns)
    found = Survey(
        source=str(path),
        recognised=source.recognised,
        is_evaluation=FORMATS[source.recognised.name].is_evaluation,
    )
    entries = iter(source)
    while batch := list(islice(entries, BATCH_ROWS)):
        records = list(_taken(found, batch, rejected))
        for record in records:
            found.add(record)
        prompts, answers = lengths(records)
        found.prompt_lengths.extend(prompts)
        found.answer_lengths.extend(answers)
    return found


def _taken(found: Survey, batch: Sequence[Entry], rejected: RejectedRows) -> Iterator[Record]:
    for entry in batch:
        found.num_rows += 1
        if isinstance(entry.row, dict):
            found.personal.update(name for name in entry.row if PERSONAL.fullmatch(str(name)))
        if entry.record is not None:
            yield entry.record
        elif isinstance(entry.fault, OfNoUse):
            found.left_out[str(entry.fault)] += 1
        else:
            rejected.add(entry.where, str(entry.fault))
            found.num_rejected += 1


def conflicts_of(record: Record) -> Iterator[str]:
    """What the labels of a pair say against one another."""
    first, other = record.is_safe
    if first is False and other is False:
        yield "both answers are unsafe"
    if record.better is not None and record.is_safe[record.better] is False:
        yield "the better answer is unsafe"
        if record.is_safe[1 - record.better]:
            yield "the better answer is unsafe and the other safe"
    safer, is_safe = record.safer, record.is_safe
    if safer is not None and is_safe[safer] is False and is_safe[1 - safer]:
        yield "the safer answer is unsafe and the other safe"
    if None not in (record.better, record.safer) and record.better != record.safer:
        yield "the better answer is not the safer one"
    if record.responses[0] == record.responses[1]:
        yield "both answers are the same"


def characters(records: Sequence[Record]) -> tuple[list[int], list[int]]:
    """Lengths where no tokenizer is given."""
    return (
        [sum(len(turn.content) for turn in record.messages) for record in records],
        [len(response) for record in records for response in record.responses],
    )


def tokens_by(renderer: Renderer) -> Lengths:
    """Lengths in tokens, with what a chat template writes around the turns."""

    def lengths(records: Sequence[Record]) -> tuple[list[int], list[int]]:
        prompts = [len(ids) for ids in renderer.prompts([record.messages for record in records])]
        asked = [record.messages for record in records for _ in record.responses]
        responses = [response for record in records for response in record.responses]
        answers = renderer.answers(asked, responses)
        return prompts, [len(answer.token_ids) - answer.prompt_length for answer in answers]

    return lengths


def report(found: Survey, unit: str) -> str:
    """What a survey found, a few lines of text."""
    form = found.recognised
    rows = [
        ("recognised", f"{form.name}: {form.why}"),
        ("rows", f"{found.num_rows}: {_counts(found.kinds)}; {found.num_rejected} rejected"),
        ("left out", _counts(found.left_out)),
        ("classes", _classes(found.classes)),
        ("prompts", f"{len(found.prompts_seen)} different; {_spread(found.prompt_lengths, unit)}"),
        ("answers", _spread(found.answer_lengths, unit)),
        ("labels", _counts(found.conflicts + _of_two_verdicts(found))),
        ("repeated", _repeated(found)),
        ("data.prefer", _taught(found)),
        ("personal", ", ".join(sorted(found.personal)) + ": dropped" if found.personal else ""),
        ("evaluation", "a set to measure by; do not train on it" if found.is_evaluation else ""),
    ]
    lines = [f"  {name:<12}{text}" for name, text in rows if text]
    return "\n".join([found.source, *lines])


def _of_two_verdicts(found: Survey) -> Counter[str]:
    both = sum(verdict == 3 for verdict in found.verdicts.values())
    told = f"of {len(found.verdicts)} labelled answers: safe in one row and unsafe in another"
    return Counter({told: both})


def _repeated(found: Survey) -> str:
    rows = sum(count - 1 for count in found.rows_seen.values())
    prompts = len(found.prompts_seen)
    near = prompts - len(found.near_prompts)
    return (
        f"{rows} rows are copies of another; of {prompts} prompts {near} differ from another in "
        "case, punctuation and numbers alone"
    )


def _taught(found: Survey) -> str:
    total = found.kinds.total() - found.kinds[Kind.PROMPT.value]
    if not total:
        return ""
    return "rows that teach a policy: " + _counts(found.taught, joined="by {1} {0}")


def _classes(classes: Counter[str]) -> str:
    without = classes[""]
    named = Counter({name: count for name, count in classes.items() if name})
    if not without:
        return _counts(named)
    return ", ".join(filter(None, (_counts(named), f"{without} without one count as GENERAL")))


def _counts(counts: Mapping[str, int], joined: str = "{0} {1}") -> str:
    return ", ".join(joined.format(count, name) for name, count in counts.items() if count)


def _spread(lengths: array[int], unit: str) -> str:
    if not lengths:
        return ""
    low, median, high, most = np.quantile(np.frombuffer(lengths, np.int64), [0, 0.5, 0.95, 1])
    return (
        f"{len(lengths)} of {low:.0f} to {most:.0f} {unit}, median {median:.0f}, "
        f"95 % up to {high:.0f}"
    )


def overlaps(found: Sequence[Survey], evaluation: Sequence[Survey]) -> list[str]:
    """Prompts that two data sets share, a line for each two that share any."""
    lines = []
    for one, other in combinations([*found, *evaluation], 2):
        same = len(one.prompts_seen.keys() & other.prompts_seen.keys())
        near = len(one.near_prompts & other.near_prompts)
        if same or near:
            line = f"{one.source} and {other.source} share {same} prompts ({near} by words alone)"
            if other in evaluation and one not in evaluation and same:
                line += "; fit and train refuse the two together"
            lines.append(line)
    return lines


def survey_all(
    files: Sequence[str],
    evaluation: Sequence[str],
    *,
    renderer: Renderer | None,
    columns: Mapping[str, str],
    max_rejected_fraction: float,
    rejected_file: Path | None,
    say: Callable[[str], None],
) -> bool:
    """Survey data sets and say what each holds and what they share.

    Args: as the options of `python -m equilibrate data`; of a folder of splits each is one set.
    Returns: whether each was recognised, with no more rejected rows than are allowed.
    """
    lengths, unit = (tokens_by(renderer), "tokens") if renderer else (characters, "characters")
    groups: list[list[Survey]] = [[], []]
    is_good = True
    for group, names in zip(groups, (files, evaluation), strict=True):
        for path in (split for name in names for split in splits_of(Path(name))):
            rejected = RejectedRows(
                path,
                max_fraction=max_rejected_fraction,
                file=rejected_file,
                limit="--max-rejected-fraction",
            )
            try:
                found = survey(path, lengths=lengths, rejected=rejected, columns=columns)
                group.append(found)
                say(report(found, unit))
                rejected.settle(found.num_rows)
            except DataError as error:
                is_good = False
                say(f"{path}\n  refused     {str(error).removeprefix(f'{path}: ')}")
    for line in overlaps(*groups):
        say(line)
    return is_good


def _hash(*texts: str) -> int:
    whole = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(whole, digest_size=8).digest(), "big")
