"""`python -m equilibrate fdc synthesize mhd|answers`: options, and the steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from tyro.conf import Positional, arg

from equilibrate.errors import ConfigError, DataError, ResourceError
from equilibrate.fdc.commands import (
    Column,
    Connect,
    KeyVariable,
    MaxRejected,
    OnlyEstimate,
    Price,
    require_price,
)

if TYPE_CHECKING:
    from equilibrate.fdc.asking import Endpoint, Estimate
    from equilibrate.fdc.label import Row
    from equilibrate.fdc.remedy import Outcome, Remedy, Verdict
    from equilibrate.fdc.synthesize import Merged
    from equilibrate.types import Category

Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What is asked, and what it may cost."""

    out: Annotated[Path, arg(help="JSON lines to write.", metavar="FILE")]
    endpoint: Annotated[str, arg(help="OpenAI-compatible address.", metavar="URL")]
    model: Annotated[str, arg(help="Model that writes.", metavar="NAME")]
    judge_model: Annotated[
        str, arg(help="Model that judges what it wrote; by default the same.", metavar="NAME")
    ] = ""
    api_key_variable: KeyVariable = ""
    price: Price = (0.0, 0.0)
    estimate: OnlyEstimate = False
    column: Column = ""
    max_rejected: MaxRejected = 0.05
    written_beside: ClassVar[tuple[str, ...]] = ("rejected", "asked")

    @property
    def judged_by(self) -> str:
        return self.judge_model or self.model

    def beside(self, name: str) -> Path:
        return self.out.with_suffix(f".{name}.jsonl")

    def check(self, *inputs: Path) -> None:
        """Raises: ConfigError, or ResourceError for an output that could not be written."""
        from equilibrate.data.rows import require_writable_file

        require_price(self.price)
        if self.out.suffix != ".jsonl":
            raise ConfigError(
                f"--out ({self.out}) must end in .jsonl: what is written beside it has the rest of "
                f"its name; try {self.out}.jsonl"
            )
        for file in (self.out, *map(self.beside, self.written_beside)):
            require_writable_file(file, but=inputs)

    def connect(
        self, connect: Connect, form: Mapping[str, object] | None, *, judge: bool = False
    ) -> Endpoint:
        model = self.judged_by if judge else self.model
        return connect(self.endpoint, model, self.api_key_variable, form)

    def print_estimate(self, found: Estimate) -> None:
        from equilibrate.data.rows import counted

        told = found.describe(self.price)
        print(f"to ask: {counted(found.num_requests, 'question')}, {told}", flush=True)

    def write(self, kept: Mapping[Path, Rows], left: Rows, summary: str) -> int:
        """What came out, by file, and beside it what was left out, each with its `reason`.

        Where nothing came out the files of an earlier run stay.

        Raises: ResourceError where questions got no answer, DataError where nothing came out.
        """
        from equilibrate.data.rows import counted
        from equilibrate.fdc.asking import num_unanswered
        from equilibrate.fdc.label import write_lines

        self.out.parent.mkdir(parents=True, exist_ok=True)
        for file, rows in kept.items() if kept[self.out] else ():
            write_lines(file, rows)
        write_lines(self.beside("rejected"), left)
        print(summary)
        if left:
            print(f"left out: {len(left)}, with the reason, in {self.beside('rejected')}")
        reasons = [str(row["reason"]) for row in left]
        if silent := num_unanswered(reasons):
            raise ResourceError(
                f"{counted(silent, 'question')} got no answer; the same command asks again"
            )
        if not kept[self.out]:
            reason, count = Counter(reasons).most_common(1)[0]
            raise DataError(
                f"nothing came out, and {self.out} is left as it was; the reason of {count} of "
                f"{len(left)} left out: {reason}"
            )
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MhdOptions(_Options):
    """Options of `fdc synthesize mhd`."""

    ehd_file: Annotated[
        Positional[Path], arg(help="Prompts of class EHD, or without a class.", metavar="EHD_FILE")
    ]
    ihd_file: Annotated[
        Positional[Path], arg(help="Prompts of class IHD, or without a class.", metavar="IHD_FILE")
    ]
    pairs: Annotated[
        int, arg(help="Pairs to merge; what fails a check is left out.", metavar="N")
    ] = 1000
    seed: Annotated[int, arg(help="Of the choice of pairs.", metavar="N")] = 0


def mhd(options: MhdOptions, connect: Connect) -> int:
    """Raises: ConfigError, DataError or ResourceError."""
    from equilibrate.fdc import synthesize as made
    from equilibrate.fdc.asking import Asker, Replies
    from equilibrate.fdc.judge import REPLY_FORMAT, JudgeLabeller
    from equilibrate.types import Category

    if options.pairs < 1:
        raise ConfigError(f"--pairs ({options.pairs}) must be at least 1; try 1000")
    options.check(options.ehd_file, options.ihd_file)
    broken: list[Mapping[str, object]] = []
    contents = [row.text for row in _fitting(options.ehd_file, options, Category.EHD, broken)]
    intents = [row.text for row in _fitting(options.ihd_file, options, Category.IHD, broken)]
    places = made.pairs_of(len(contents), len(intents), options.pairs, options.seed)
    pairs = [(contents[i], intents[j]) for i, j in places]
    replies = Replies(options.beside("asked"))
    writer = Asker(
        options.connect(connect, made.MERGED_FORMAT),
        replies,
        made.read_merged,
        reply_tokens=made.MERGED_TOKENS,
    )
    judge = JudgeLabeller(options.connect(connect, REPLY_FORMAT, judge=True), replies)
    questions = [made.merging_question(*pair) for pair in pairs]
    # A prompt that is not there yet is about as long as its pair.
    found = writer.estimate(questions) + judge.estimate(
        writer.known(q) or " ".join(p) for q, p in zip(questions, pairs, strict=True)
    )
    options.print_estimate(found)
    if options.estimate:
        return 0
    said = writer.ask(questions)
    rows = list(made.sift_merged(pairs, [said[q] for q in questions], [*contents, *intents]))
    verdicts = judge.label([row.prompt for row in rows if not row.fault])
    return _write_merged(options, rows, verdicts, broken)


def _write_merged(
    options: MhdOptions,
    rows: Sequence[Merged],
    verdicts: Mapping[str, Category | DataError],
    broken: Rows,
) -> int:
    """Raises: as `_Options.write`."""
    from equilibrate.data.rows import counted
    from equilibrate.types import Category

    kept: list[dict[str, object]] = []
    left = list(broken)
    for row in rows:
        fault, verdict = row.fault, None if row.fault else verdicts[row.prompt]
        if isinstance(verdict, Category):
            made_of = {"ehd": row.content, "ihd": row.intent}
            own = {"category": verdict.value, "labeller": options.judged_by}
            is_mhd = verdict is Category.MHD
            kept.append({"prompt": row.prompt, **own, "is_mhd": is_mhd, "made_of": made_of})
        else:
            texts = {"ehd": row.content, "ihd": row.intent, "prompt": row.prompt}
            left.append({**texts, "reason": fault or str(verdict)})
    counts = Counter(str(row["category"]) for row in kept)
    shares = ", ".join(f"{name} {n}" for name, n in counts.most_common()) or "none"
    told = (
        f"{counted(len(kept), 'new prompt')} of {counted(len(rows), 'pair')}; "
        f"by {options.judged_by}: {shares}"
    )
    return options.write({options.out: kept}, left, told)


def _fitting(
    file: Path, options: _Options, wanted: Category, broken: list[Mapping[str, object]]
) -> list[Row]:
    """Different prompts of the class; a row without one counts as what the file is given for.

    Args: broken: takes the rows that break a rule, with the `reason`.
    """
    from equilibrate.data.rows import RejectedRows, counted, prompt_key
    from equilibrate.fdc.label import read_prompts_to_label

    rejected = RejectedRows(file, max_fraction=options.max_rejected, limit="--max-rejected")
    rows = read_prompts_to_label(file, rejected, column=options.column)
    broken += ({"where": row["where"], "reason": row["rule"]} for row in rejected.rows)
    fitting = [r for r in rows if r.given is wanted or (r.given is None and not r.fits_none)]
    if not fitting:
        raise DataError(
            f"{file} ({counted(len(rows), 'row')}) must hold prompts of class {wanted.value}"
        )
    if rejected:
        print(f"{file}: left out for a broken rule: {counted(len(rejected), 'row')}")
    if other := len(rows) - len(fitting):
        print(f"{file}: left out for another class than {wanted.value}: {counted(other, 'row')}")
    # Of equal ones the first.
    return list({prompt_key(row.text): row for row in reversed(fitting)}.values())[::-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersOptions(_Options):
    """Options of `fdc synthesize answers`."""

    file: Annotated[
        Positional[Path], arg(help="Prompts of class EHD, or without a class.", metavar="FILE")
    ]
    notes: Annotated[
        Path,
        arg(
            help="Notes on risks: rows with `text` (and `id`), or paragraphs of .txt or .md.",
            metavar="FILE",
        ),
    ]
    notes_per_prompt: Annotated[
        int, arg(help="Notes laid before each prompt, at most.", metavar="N")
    ] = 3
    written_beside: ClassVar[tuple[str, ...]] = ("rejected", "asked", "pairs")


def answers(
    options: AnswersOptions,
    connect: Connect,
    grading_question: Callable[[str, str], str],
    parse_verdict: Callable[[str], Verdict],
) -> int:
    """Args: grading_question, parse_verdict: how the judge is asked about a request and an answer,
        and how its reply is read.

    Raises: ConfigError, DataError or ResourceError.
    """
    from equilibrate.data.rows import counted
    from equilibrate.fdc.notes import Retriever, read_notes
    from equilibrate.fdc.remedy import Case
    from equilibrate.types import Category

    if options.notes_per_prompt < 1:
        raise ConfigError(f"--notes-per-prompt ({options.notes_per_prompt}) must be >= 1; try 3")
    options.check(options.file, options.notes)
    notes, num_copies = read_notes(options.notes)
    broken: list[Mapping[str, object]] = []
    rows = _fitting(options.file, options, Category.EHD, broken)
    found = Retriever(notes).find([row.text for row in rows], options.notes_per_prompt)
    cases = [
        Case(prompt=row.prompt, text=row.text, notes={name: notes[name] for name in names})
        for row, names in zip(rows, found, strict=True)
    ]
    copies = f" ({num_copies} left out as copies)" if num_copies else ""
    alone = sum(not case.notes for case in cases)
    print(
        f"{counted(len(notes), 'note')}{copies}; none of them fits: {alone} of "
        f"{counted(len(cases), 'prompt')}"
    )
    job = _remedy(options, connect, grading_question, parse_verdict)
    options.print_estimate(job.estimate(cases))
    if options.estimate:
        return 0
    return _write_answers(options, job.answer(cases), broken)


def _remedy(
    options: AnswersOptions,
    connect: Connect,
    grading_question: Callable[[str, str], str],
    parse_verdict: Callable[[str], Verdict],
) -> Remedy:
    from equilibrate.fdc import remedy
    from equilibrate.fdc.asking import Asker, Replies

    replies = Replies(options.beside("asked"))
    plain, review, revised = (
        options.connect(connect, form)
        for form in (None, remedy.REVIEW_FORMAT, remedy.REVISED_FORMAT)
    )
    judge = options.connect(connect, None, judge=True)
    long, middle, short = remedy.ANSWER_TOKENS, remedy.REVIEW_TOKENS, remedy.VERDICT_TOKENS
    return remedy.Remedy(
        writer=Asker(plain, replies, remedy.read_draft, reply_tokens=long),
        reviewer=Asker(review, replies, remedy.read_review, reply_tokens=middle),
        reviser=Asker(revised, replies, remedy.read_revised, reply_tokens=long),
        judge=Asker(judge, replies, parse_verdict, reply_tokens=short),
        grading_question=grading_question,
    )


def _write_answers(options: AnswersOptions, outcomes: Sequence[Outcome], broken: Rows) -> int:
    """Raises: as `_Options.write`."""
    from equilibrate.data.rows import counted
    from equilibrate.fdc.remedy import rows_of

    kept, pairs, left = rows_of(outcomes, options.judged_by)
    told = (
        f"{counted(len(kept), 'answer')} to {counted(len(outcomes), 'prompt')} that "
        f"{options.judged_by} calls safe; "
        f"written anew: {sum(bool(row['is_revised']) for row in kept)}, "
        f"refusals: {sum(bool(row['is_refusal']) for row in kept)}; "
        f"{counted(len(pairs), 'pair')} with a harmful draft in {options.beside('pairs')}"
    )
    if unpaired := sum(bool(one.lost_pair) for one in outcomes):
        told += f"; drafts without a verdict, so perhaps pairs that lack: {unpaired}"
    return options.write(
        {options.out: kept, options.beside("pairs"): pairs}, [*broken, *left], told
    )
