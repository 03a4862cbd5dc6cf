"""`python -m equilibrate fdc label|audit|sample`: options, and the steps of each command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from equilibrate.errors import ConfigError, DataError, ResourceError

if TYPE_CHECKING:
    from equilibrate.fdc.asking import Endpoint
    from equilibrate.fdc.classifier import Embed
    from equilibrate.fdc.judge import JudgeLabeller
    from equilibrate.fdc.label import Row, Votes
    from equilibrate.types import Category

File = Annotated[
    Positional[Path], arg(help="Prompts, in any form that `data` reads.", metavar="FILE")
]
Column = Annotated[
    str,
    arg(help="Column of the text; by default `prompt`, else as the format says.", metavar="NAME"),
]
MaxRejected = Annotated[
    float, arg(help="Share of rows that may break a rule before nothing is done.", metavar="SHARE")
]
Out = Annotated[Path, arg(help="Folder for what is written.", metavar="FOLDER")]
Amounts = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help="Rows of a class, as EHD=100; repeat it.", metavar="CLASS=N"),
]
KeyVariable = Annotated[str, arg(help="Environment variable with the key.", metavar="NAME")]
Price = Annotated[
    tuple[float, float],
    arg(help="Price of a million tokens of input, and of output.", metavar="IN OUT"),
]
OnlyEstimate = Annotated[bool, arg(help="Say what asking would take, and stop.")]
Connect = Callable[[str, str, str, "Mapping[str, object] | None"], "Endpoint"]
"""Address, model, name of the variable with the key, and form of the replies (`response_format`),
to a model that answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelOptions:
    """Options of `fdc label`."""

    file: File
    out: Out
    train: Annotated[
        UseAppendAction[tuple[Path, ...]],
        arg(help="Labelled prompts (`prompt`, `category`) for the local labeller.", metavar="FILE"),
    ] = ()
    people: Annotated[
        UseAppendAction[tuple[Path, ...]],
        arg(help="Prompts that people labelled, such as a filled unsure.jsonl.", metavar="FILE"),
    ] = ()
    embed: Annotated[
        Path | None,
        arg(help="Model folder whose hidden states the local labeller reads too.", metavar="MODEL"),
    ] = None
    endpoint: Annotated[
        str, arg(help="OpenAI-compatible address for the model as labeller.", metavar="URL")
    ] = ""
    model: Annotated[str, arg(help="Model at the endpoint.", metavar="NAME")] = ""
    api_key_variable: KeyVariable = ""
    price: Price = (0.0, 0.0)
    estimate: OnlyEstimate = False
    threshold: Annotated[
        float, arg(help="Rows with less confidence go to people.", metavar="P")
    ] = 0.5
    column: Column = ""
    relabel: Annotated[
        bool, arg(help="Label rows that have a class too; theirs is kept as given_category.")
    ] = False
    max_rejected: MaxRejected = 0.05
    seed: Annotated[int, arg(help="Of the folds.", metavar="N")] = 0


def label(options: LabelOptions, connect: Connect) -> int:
    """Raises: ConfigError, DataError or ResourceError, before anything is asked or learned."""
    from equilibrate.data.rows import REJECTED_FILE, RejectedRows
    from equilibrate.fdc import label as labels

    _check_label(options)
    rejected = RejectedRows(
        options.file,
        max_fraction=options.max_rejected,
        file=options.out / REJECTED_FILE,
        limit="--max-rejected",
    )
    rows = labels.read_prompts_to_label(
        options.file, rejected, column=options.column, relabel=options.relabel
    )
    train = [row for file in options.train for row in _read(file)]
    judge = _judge(options, connect)
    ballots = [labels.known_votes(labels.PEOPLE, _read(file)) for file in options.people]
    ballots.append(labels.known_votes(labels.GIVEN, rows))
    settled = {t for b in ballots for t in (*b.by_text, *b.faults)}
    texts = [row.text for row in rows if row.text not in settled]
    known = _measured_on(train) if judge else {}
    if judge is not None:
        _print_estimate(judge, [*known, *texts], options.price)
        if options.estimate:
            return 0
    worth = None
    if train:
        votes, worth = _local(options, train, texts)
        ballots.append(votes)
    if judge is not None:
        ballots.append(labels.endpoint_votes(judge, texts, known))
    totals = labels.write_labels(
        rows, ballots, options.out, threshold=options.threshold, num_rejected=len(rejected)
    )
    text = labels.summary(totals, local=worth)
    (options.out / labels.SUMMARY_FILE).write_text(text, encoding="utf-8")
    print(*labels.render(totals, options.out), sep="\n")
    return _unanswered(ballots)


def _check_label(options: LabelOptions) -> None:
    if not (options.train or options.people or options.endpoint):
        raise ConfigError(
            "fdc label needs a labeller: --train FILE (learns here), --endpoint URL --model NAME "
            "(asks a model) or --people FILE; try --train"
        )
    if bool(options.endpoint) != bool(options.model):
        raise ConfigError(
            f"--endpoint ({options.endpoint!r}) and --model ({options.model!r}) go together; "
            "give both or neither"
        )
    if options.estimate and not options.endpoint:
        raise ConfigError("--estimate is about an endpoint; add --endpoint URL --model NAME")
    if options.embed is not None and not options.train:
        raise ConfigError("--embed serves the local labeller; add --train FILE")
    if not 0 <= options.threshold <= 1:
        raise ConfigError(f"--threshold ({options.threshold:g}) must be in [0, 1]; try 0.5")
    require_price(options.price)


def require_price(price: tuple[float, float]) -> None:
    """Raises: ConfigError for a negative one, or what is no number."""
    if not all(math.isfinite(amount) and amount >= 0 for amount in price):
        raise ConfigError(f"--price {price} must be two numbers >= 0; try 0.5 1.5")


def _read(file: Path, column: str = "") -> list[Row]:
    """Of a labelled file no row may be broken: it decides over all others."""
    from equilibrate.data.rows import RejectedRows
    from equilibrate.fdc.label import read_prompts_to_label

    return read_prompts_to_label(file, RejectedRows(file), column=column)


def _judge(options: LabelOptions, connect: Connect) -> JudgeLabeller | None:
    if not options.endpoint:
        return None
    from equilibrate.fdc.asking import Replies
    from equilibrate.fdc.judge import REPLY_FORMAT, JudgeLabeller
    from equilibrate.fdc.label import ANSWERS_FILE

    endpoint = connect(options.endpoint, options.model, options.api_key_variable, REPLY_FORMAT)
    return JudgeLabeller(endpoint, Replies(options.out / ANSWERS_FILE))


def _measured_on(train: Sequence[Row]) -> Mapping[str, Category]:
    from equilibrate.fdc.label import calibration_texts, labelled_texts

    known = dict(zip(*labelled_texts(train), strict=True))
    return {text: known[text] for text in calibration_texts(list(known))}


def _print_estimate(judge: JudgeLabeller, texts: Sequence[str], price: tuple[float, float]) -> None:
    found = judge.estimate(texts)
    from equilibrate.data.rows import counted

    told = found.describe(price)
    print(f"to ask: {counted(found.num_requests, 'prompt')}, {told}", flush=True)


def _local(
    options: LabelOptions, train: Sequence[Row], texts: Sequence[str]
) -> tuple[Votes, Mapping[str, object]]:
    from equilibrate.fdc.label import labelled_texts, local_votes
    from equilibrate.fdc.local import LocalLabeller, cross_validate

    embed: Embed | None = None
    if options.embed is not None:
        from equilibrate.fdc.embeddings import Embedder

        embed = Embedder(options.embed, options.out / "vectors")
    known, classes = labelled_texts(train)
    worth = cross_validate(known, classes, embed=embed, seeds=(options.seed,))
    value, low, high = worth.macro_f1
    print(
        f"local labeller on {worth.num_prompts} labelled prompts, each unseen: macro-F1 "
        f"{value:.2f} ({low:.2f} to {high:.2f}), accuracy {worth.accuracy:.2f}, confidence off by "
        f"{worth.calibration_error:.2f}",
        flush=True,
    )
    labeller = LocalLabeller(known, classes, embed=embed, seed=options.seed)
    return local_votes(labeller, texts), worth.to_json()


def _unanswered(ballots: Sequence[Votes]) -> int:
    """Raises: ResourceError if the endpoint left prompts without an answer."""
    from equilibrate.data.rows import counted
    from equilibrate.fdc.asking import num_unanswered

    if silent := num_unanswered(fault for votes in ballots for fault in votes.faults.values()):
        raise ResourceError(
            f"{counted(silent, 'prompt')} got no answer from the endpoint; the others are written, "
            "and the same command asks only what is missing"
        )
    return 0


def audit(
    file: File,
    run: Annotated[
        Path | None, arg(help="Folder of a run, or its metrics.jsonl.", metavar="RUN")
    ] = None,
    general: Annotated[
        int, arg(help="General prompts that are trained beside; 0: those of the file.", metavar="N")
    ] = 0,
    out: Annotated[Path | None, arg(help="JSON file of the findings.", metavar="FILE")] = None,
    column: Column = "",
) -> int:
    """Say how the classes stand, what a run tells of each, and how many prompts would do."""
    from equilibrate.fdc import audit as audits
    from equilibrate.types import Category

    found = audits.balance(_read(file, column))
    print(*audits.mixture_lines(found.counts), sep="\n")
    print(f"as even as {found.effective_classes:.1f} equal classes")
    for name in ("without_class", "conflicts", "copies"):
        if count := getattr(found, name):
            print(f"{name.replace('_', ' ')}: {count}")
    saturation = {}
    if run is not None:
        metrics = run / "metrics.jsonl" if run.is_dir() else run
        saturation = audits.read_saturation(metrics)
        for category, seen in saturation.items():
            print(
                f"{category.value} over {seen.num_iterations} iterations: {seen.first:.0%} unsafe, "
                f"then {seen.before:.0%}, now {seen.last:.0%}: {seen.verdict}"
            )
    num_general = general or found.counts[Category.GENERAL]
    advice = []
    if num_general:
        advice = audits.advise(found.counts, num_general, saturation)
        for a in advice:
            print(
                f"{a.category.value}: {a.low} to {a.high}, have {a.have} ({a.change:+}): {a.reason}"
            )
    else:
        print("no GENERAL rows: give --general N for recommended counts")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(audits.audit_json(found, saturation, advice), indent=2) + "\n"
        out.write_text(text, encoding="utf-8")
    return 0


def sample(
    file: File,
    out: Annotated[Path, arg(help="JSON lines to write; MIXTURE beside it.", metavar="FILE")],
    amounts: Amounts = (),
    total: Annotated[
        int, arg(help="Rows in all; amounts (or 10:3:1) are then a ratio.", metavar="N")
    ] = 0,
    when_short: Annotated[
        Literal["error", "oversample"], arg(help="What a class with too few rows does.")
    ] = "error",
    seed: Annotated[int, arg(help="Of the choice.", metavar="N")] = 0,
    column: Column = "",
) -> int:
    """Choose so many rows of each class; by default the paper's 10,000, 3,000 and 1,000."""
    from equilibrate.fdc import audit as audits
    from equilibrate.fdc.label import write_lines
    from equilibrate.types import Category

    if total < 0:
        raise ConfigError(f"--total ({total}) must be above 0, or left out")
    wanted = _amounts(amounts) or dict(audits.PAPER_COUNTS)
    if total:
        wanted = audits.scale(wanted, total)
    rows = audits.sample_rows(
        _read(file, column), wanted, oversample=when_short == "oversample", seed=seed
    )
    counts = {c: sum(row.given is c for row in rows) for c in Category}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_lines(out, [row.content for row in rows])
    mixture = {
        "seed": seed,
        "wanted": {c.value: n for c, n in wanted.items()},
        "counts": {c.value: n for c, n in counts.items()},
        "different_prompts": len({row.text for row in rows}),
    }
    text = json.dumps(mixture, indent=2) + "\n"
    out.with_suffix(".mixture.json").write_text(text, encoding="utf-8")
    print(*audits.mixture_lines(counts), sep="\n")
    return 0


def _amounts(given: Sequence[str]) -> dict[Category, int]:
    """Raises: ConfigError naming an entry that is not CLASS=N."""
    from equilibrate.data.recognition import parse_label

    found: dict[Category, int] = {}
    for entry in given:
        name, _, number = entry.partition("=")
        try:
            category = parse_label(name)
        except DataError as error:
            raise ConfigError(f"--amounts {entry!r}: {error}") from None
        if not number.isdecimal() or category in found:
            raise ConfigError(
                f"--amounts {entry!r} must be a class and a whole number, each class once; "
                "for example EHD=100"
            )
        found[category] = int(number)
    return found
