"""`python -m equilibrate fdc synthesize mhd`: options, and the steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from equilibrate.errors import ConfigError, DataError, ResourceError
from equilibrate.fdc.commands import Column, Connect

if TYPE_CHECKING:
    from equilibrate.fdc.synthesize import Merged
    from equilibrate.types import Category


@dataclass(frozen=True, slots=True, kw_only=True)
class MhdOptions:
    """Options of `fdc synthesize mhd`."""

    ehd_file: Annotated[
        Positional[Path], arg(help="Prompts of class EHD, or without a class.", metavar="EHD_FILE")
    ]
    ihd_file: Annotated[
        Positional[Path], arg(help="Prompts of class IHD, or without a class.", metavar="IHD_FILE")
    ]
    out: Annotated[Path, arg(help="JSON lines to write.", metavar="FILE")]
    endpoint: Annotated[str, arg(help="OpenAI-compatible address.", metavar="URL")]
    model: Annotated[str, arg(help="Model that writes the prompts.", metavar="NAME")]
    judge_model: Annotated[
        str, arg(help="Model that says their class; by default the same.", metavar="NAME")
    ] = ""
    api_key_variable: Annotated[
        str, arg(help="Environment variable with the key.", metavar="NAME")
    ] = ""
    pairs: Annotated[
        int, arg(help="Pairs to merge; what fails a check is left out.", metavar="N")
    ] = 1000
    price: Annotated[
        tuple[float, float],
        arg(help="Price of a million tokens of input, and of output.", metavar="IN OUT"),
    ] = (0.0, 0.0)
    estimate: Annotated[bool, arg(help="Say what asking would take, and stop.")] = False
    column: Column = "prompt"
    seed: Annotated[int, arg(help="Of the choice of pairs.", metavar="N")] = 0


def mhd(options: MhdOptions, connect: Connect) -> int:
    """Raises: ConfigError, DataError or ResourceError."""
    from equilibrate.fdc import synthesize as made
    from equilibrate.fdc.asking import Asker, Replies
    from equilibrate.fdc.judge import REPLY_FORMAT, JudgeLabeller
    from equilibrate.types import Category

    _check(options)
    contents = _texts(options.ehd_file, options.column, Category.EHD)
    intents = _texts(options.ihd_file, options.column, Category.IHD)
    places = made.pairs_of(len(contents), len(intents), options.pairs, options.seed)
    pairs = [(contents[i], intents[j]) for i, j in places]
    replies = Replies(options.out.with_suffix(".asked.jsonl"))
    access = (options.endpoint, options.model, options.api_key_variable)
    writer = Asker(
        connect(*access, made.MERGED_FORMAT),
        replies,
        made.read_merged,
        reply_tokens=made.MERGED_TOKENS,
    )
    judged_by = options.judge_model or options.model
    judge = JudgeLabeller(
        connect(options.endpoint, judged_by, options.api_key_variable, REPLY_FORMAT), replies
    )
    questions = [made.merging_question(*pair) for pair in pairs]
    # A prompt that is not there yet is about as long as its pair.
    found = writer.estimate(questions) + judge.estimate(
        writer.known(q) or " ".join(p) for q, p in zip(questions, pairs, strict=True)
    )
    print(f"to ask: {found.num_requests} questions, {found.describe(options.price)}", flush=True)
    if options.estimate:
        return 0
    said = writer.ask(questions)
    rows = list(made.sift_merged(pairs, [said[q] for q in questions], [*contents, *intents]))
    verdicts = judge.label([row.prompt for row in rows if not row.fault])
    return _write(options.out, rows, verdicts, judged_by)


def _write(
    out: Path, rows: Sequence[Merged], verdicts: Mapping[str, Category | DataError], judged_by: str
) -> int:
    """Raises: ResourceError where questions got no answer."""
    from equilibrate.fdc.label import write_lines
    from equilibrate.types import Category

    kept: list[dict[str, object]] = []
    left = [(row, row.fault) for row in rows if row.fault]
    new = [row for row in rows if not row.fault]
    for row in new:
        verdict = verdicts[row.prompt]
        if isinstance(verdict, DataError):
            left.append((row, str(verdict)))
            continue
        made_of = {"ehd": row.content, "ihd": row.intent}
        own = {"prompt": row.prompt, "category": verdict.value, "labeller": judged_by}
        kept.append({**own, "is_mhd": verdict is Category.MHD, "made_of": made_of})
    rejected = out.with_suffix(".rejected.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_lines(out, kept)
    write_lines(
        rejected,
        [{"ehd": r.content, "ihd": r.intent, "prompt": r.prompt, "reason": f} for r, f in left],
    )
    counts = Counter(str(row["category"]) for row in kept)
    shares = ", ".join(f"{name} {n}" for name, n in counts.most_common()) or "none"
    print(f"{len(kept)} new prompts of {len(rows)} pairs; by {judged_by}: {shares}")
    if left:
        print(f"left out: {len(left)}, with the reason, in {rejected}")
    if silent := sum("no answer" in fault for _, fault in left):
        raise ResourceError(f"{silent} questions got no answer; the same command asks them again")
    return 0


def _check(options: MhdOptions) -> None:
    if options.pairs < 1:
        raise ConfigError(f"--pairs ({options.pairs}) must be at least 1; try 1000")
    if min(options.price) < 0:
        raise ConfigError(f"--price {options.price} must be two numbers >= 0")
    if options.out.resolve() in {options.ehd_file.resolve(), options.ihd_file.resolve()}:
        raise ConfigError(f"--out ({options.out}) must not be an input; name another file")


def _texts(file: Path, column: str, wanted: Category) -> Sequence[str]:
    """Different prompts of the class; a row without one counts as what the file is given for."""
    from equilibrate.data.rows import RejectedRows, prompt_key
    from equilibrate.fdc.label import read_prompts_to_label

    rows = read_prompts_to_label(file, RejectedRows(file), column=column)
    fitting = [r for r in rows if r.given is wanted or (r.given is None and not r.fits_none)]
    if not fitting:
        raise DataError(f"{file} ({len(rows)} rows) must hold prompts of class {wanted.value}")
    if other := len(rows) - len(fitting):
        print(f"{file}: {other} rows of other classes than {wanted.value} are left out")
    # Of equal ones the first.
    return list({prompt_key(row.text): row.text for row in reversed(fitting)}.values())[::-1]
