"""`fdc label`: the class of every row of a file, by one labeller or several, and who is unsure."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from equilibrate.data.recognition import UNDECIDED, Entry, Source, label_key, parse_label
from equilibrate.data.records import checked
from equilibrate.data.records import said as read_out
from equilibrate.data.rows import REJECTED_FILE, RejectedRows, shown
from equilibrate.errors import DataError
from equilibrate.fdc.agreement import kappa
from equilibrate.fdc.asking import Estimate
from equilibrate.fdc.judge import JudgeLabeller
from equilibrate.fdc.local import LocalLabeller
from equilibrate.types import Category, Conversation

LABELLED_FILE = "labelled.jsonl"
UNLABELLED_FILE = "unlabelled.jsonl"
UNSURE_FILE = "unsure.jsonl"
SUMMARY_FILE = "labels.json"
ANSWERS_FILE = "answers.jsonl"
GIVEN, PEOPLE = "given", "people"
NUM_CALIBRATION = 200
"""Labelled prompts that the endpoint is measured on."""

LABELLERS: dict[str, type] = {"local": LocalLabeller, "endpoint": JudgeLabeller}
"""Where two are equally sure, the later one decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt that somebody brought."""

    where: str
    content: Mapping[str, Any]
    prompt: str | Conversation
    text: str
    """The prompt as people read it."""
    given: Category | None
    """The class that it came with."""
    fits_none: bool
    """It came as OTHER: somebody looked and found no class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    category: Category
    confidence: float | None
    """Chance that it is right; None where nobody measured it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """What one labeller said."""

    name: str
    by_text: Mapping[str, Vote]
    faults: Mapping[str, str]
    """Texts without a vote, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What became of the rows of a file."""

    num_labelled: int
    num_unsure: int
    num_unlabelled: int
    """Rows that no labeller gave a class."""
    num_rejected: int
    """Rows that break a rule."""
    counts: Mapping[str, int]
    labellers: Mapping[str, int]
    """Rows that each one decided."""
    kappas: Mapping[str, float | None]
    """Agreement of each two on the prompts that both labelled."""


class Meter(Protocol):
    """`JudgeLabeller`, as far as it is needed here."""

    def label(self, texts: Sequence[str]) -> Mapping[str, Category | DataError]: ...

    def estimate(self, texts: Sequence[str]) -> Estimate: ...


def read_prompts_to_label(
    path: Path, rejected: RejectedRows, *, column: str = "", relabel: bool = False
) -> list[Row]:
    """The rows of whatever `Source` reads, all their columns kept.

    Args:
        rejected: takes rows without a text, or with a class that is none; settled here.
        column: the one that holds the text; empty for `prompt`, or where no row has it for the
            prompt as the format of the file says.
        relabel: leave the classes that rows came with unread.
    Raises: DataError as `Source` and `RejectedRows.settle`, and without a usable row.
    """
    rows = []
    num_rows = 0
    # The text alone: rows whose answers are broken have a class too.
    source = Source(path, {"prompt": column or "prompt"}, classes=False)
    if column and not source.recognised.mapping:
        raise DataError(f"{path}: no row has the column {column!r} ({source.recognised.why})")
    for entry in source:
        num_rows += 1
        try:
            rows.append(_row(entry, relabel))
        except DataError as error:
            rejected.add(entry.where, str(error))
    rejected.settle(num_rows)
    if not rows:
        raise DataError(
            f"{path} ({num_rows} rows) must hold at least one row with `{column or 'prompt'}`"
        )
    return rows


def _row(entry: Entry, relabel: bool) -> Row:
    if entry.record is None:
        raise entry.fault or DataError("must hold a prompt")
    content = entry.row
    text = checked(read_out(entry.record.messages), "prompt")
    label = None if relabel else content.get("category")
    fits_none, given = False, None
    if label not in (None, ""):
        if not isinstance(label, str):
            raise DataError(
                f"category ({shown(label)}) must be the name of a class; or give --relabel"
            )
        fits_none = label_key(label) == UNDECIDED
        given = None if fits_none else parse_label(label)
    return Row(
        where=entry.where,
        content=content,
        prompt=entry.record.prompt,
        text=text,
        given=given,
        fits_none=fits_none,
    )


def labelled_texts(rows: Sequence[Row]) -> tuple[list[str], list[Category]]:
    """Texts and classes of the rows that came with one; a text with two classes teaches nothing."""
    seen: dict[str, set[Category]] = {}
    for row in rows:
        if row.given is not None:
            seen.setdefault(row.text, set()).add(row.given)
    clear = {text: found.pop() for text, found in seen.items() if len(found) == 1}
    return list(clear), list(clear.values())


def known_votes(name: str, rows: Sequence[Row]) -> Votes:
    """The classes that rows came with, as votes."""
    texts, labels = labelled_texts(rows)
    known = zip(texts, labels, strict=True)
    return Votes(
        name=name,
        by_text={text: Vote(category=c, confidence=None) for text, c in known},
        faults={row.text: f"{name}: fits no class (OTHER)" for row in rows if row.fits_none},
    )


def local_votes(labeller: LocalLabeller, texts: Sequence[str]) -> Votes:
    said = labeller.label(texts)
    votes = {text: Vote(category=c, confidence=p) for text, (c, p) in said.items()}
    return Votes(name="local", by_text=votes, faults={})


def calibration_texts(texts: Sequence[str], seed: int = 0) -> list[str]:
    """The labelled prompts that the endpoint is measured on."""
    return random.Random(seed).sample(list(texts), min(NUM_CALIBRATION, len(texts)))


def endpoint_votes(
    labeller: Meter, texts: Sequence[str], known: Mapping[str, Category] | None = None
) -> Votes:
    """The endpoint's classes; where `known` ones are given, its confidence is measured on them.

    A model's own word about its confidence is worth little: confidence is the share right of what
    it calls so on the known prompts, with one more right and one more wrong.
    """
    known = known or {}
    measured = labeller.label(list(known))
    hits: Counter[Category] = Counter()
    total: Counter[Category] = Counter()
    for text, said in measured.items():
        if isinstance(said, Category):
            total[said] += 1
            hits[said] += said is known[text]
    votes, faults = {}, {}
    for text, said in labeller.label(texts).items():
        if isinstance(said, Category):
            chance = (hits[said] + 1) / (total[said] + 2) if known else None
            votes[text] = Vote(category=said, confidence=chance)
        else:
            faults[text] = str(said)
    return Votes(name="endpoint", by_text=votes, faults=faults)


def decide(text: str, ballots: Sequence[Votes]) -> tuple[str, Vote, bool] | None:
    """Who decides, the class, and whether all who spoke agree; None if nobody spoke.

    What people gave wins, the first ballot of theirs; among machines, who is surer.
    """
    spoken = [(b.name, b.by_text[text]) for b in ballots if text in b.by_text]
    if not spoken:
        return None
    for name, vote in spoken:
        if name in (PEOPLE, GIVEN):
            return name, vote, True
    order = list(LABELLERS)
    name, vote = max(
        spoken,
        key=lambda s: (-1.0 if s[1].confidence is None else s[1].confidence, order.index(s[0])),
    )
    return name, vote, len({said.category for _, said in spoken}) == 1


def write_labels(
    rows: Sequence[Row],
    ballots: Sequence[Votes],
    output: Path,
    *,
    threshold: float,
    num_rejected: int,
) -> Totals:
    """Every row into `labelled.jsonl` or, with the reason, `unlabelled.jsonl`, in order.

    `unsure.jsonl` has the least sure first, each prompt once, its `category` empty: people fill it
    in, and the file is given back as `--people`.
    """
    output.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    deciders: Counter[str] = Counter()
    unsure: dict[str, tuple[float, dict[str, Any]]] = {}
    lines, unlabelled = [], []
    for row in rows:
        decided = decide(row.text, ballots)
        if decided is None:
            faults = [b.faults[row.text] for b in ballots if row.text in b.faults]
            reason = "; ".join(faults) or "no labeller gave it one class"
            unlabelled.append({**row.content, "reason": reason, "where": row.where})
            continue
        name, vote, agreed = decided
        counts[vote.category.value] += 1
        deciders[name] += 1
        lines.append(_labelled(row, name, vote))
        is_weak = vote.confidence is not None and vote.confidence < threshold
        if name not in (PEOPLE, GIVEN) and (is_weak or not agreed):
            said = {b.name: _shown(b.by_text[row.text]) for b in ballots if row.text in b.by_text}
            item = {"prompt": row.text, "category": "", "votes": said, "where": row.where}
            unsure.setdefault(row.text, (vote.confidence or 0.0, item))
    queue = [item for _, item in sorted(unsure.values(), key=lambda pair: pair[0])]
    write_lines(output / LABELLED_FILE, lines)
    write_lines(output / UNLABELLED_FILE, unlabelled)
    write_lines(output / UNSURE_FILE, queue)
    return Totals(
        num_labelled=len(lines),
        num_unsure=len(queue),
        num_unlabelled=len(unlabelled),
        num_rejected=num_rejected,
        counts={c.value: counts[c.value] for c in Category if counts[c.value]},
        labellers=dict(deciders),
        kappas=_kappas(ballots),
    )


def _labelled(row: Row, name: str, vote: Vote) -> dict[str, Any]:
    before = row.content.get("category")
    moved = {} if before in (None, "") or name == GIVEN else {"given_category": before}
    confidence = None if vote.confidence is None else round(vote.confidence, 4)
    own = {"category": vote.category.value, "confidence": confidence, "labeller": name}
    return {**row.content, **moved, **own}


def _shown(vote: Vote) -> dict[str, Any]:
    return {"category": vote.category.value, "confidence": vote.confidence}


def _kappas(ballots: Sequence[Votes]) -> dict[str, float | None]:
    found = {}
    for first, second in combinations(ballots, 2):
        both = [text for text in first.by_text if text in second.by_text]
        if both:
            value = kappa(
                [first.by_text[text].category for text in both],
                [second.by_text[text].category for text in both],
            )
            found[f"{first.name}/{second.name}"] = None if math.isnan(value) else value
    return found


def write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All or nothing: an interruption leaves the file as it was."""
    unfinished = file.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    unfinished.replace(file)


def render(totals: Totals, output: Path) -> Iterator[str]:
    """The totals in words."""
    shares = ", ".join(f"{name} {count}" for name, count in totals.counts.items())
    yield f"labelled {totals.num_labelled} rows: {shares or 'none'}"
    yield "decided by " + ", ".join(f"{name} {n}" for name, n in totals.labellers.items())
    for pair, value in totals.kappas.items():
        yield f"agreement of {pair}: kappa " + ("-" if value is None else f"{value:.2f}")
    if totals.num_unsure:
        yield f"unsure: {totals.num_unsure} prompts for people in {output / UNSURE_FILE}"
    if totals.num_unlabelled:
        yield f"without a class: {totals.num_unlabelled} rows in {output / UNLABELLED_FILE}"
    if totals.num_rejected:
        yield f"rejected: {totals.num_rejected} rows, with the reason, in {output / REJECTED_FILE}"


def summary(totals: Totals, **more: Any) -> str:
    return json.dumps({**asdict(totals), **more}, indent=2) + "\n"
