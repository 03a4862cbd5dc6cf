"""The table at the top of the page: base against aligned, with what changed for certain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from equilibrate.evaluation import Estimate, EvaluationTable
from equilibrate.report.inputs import RunRecord
from equilibrate.types import Category


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One cell of the table. Rates and helpfulness are shown in percent."""

    cell: str
    base: Estimate
    aligned: Estimate
    difference: Estimate | None
    judgement: str
    """better, worse, or same where the paired interval of the difference holds zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    title: str
    hint: str
    lines: list[Line]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    title: str
    before: str
    after: str
    note: str
    judgement: str


def headline_groups(record: RunRecord) -> list[Group]:
    """Empty if the run was not evaluated."""
    base, aligned, gap = record.base, record.aligned, record.difference
    if base is None or aligned is None:
        return []

    def group(title: str, hint: str, name: str, *, lower_is_better: bool) -> Group:
        return Group(
            title=title,
            hint=hint,
            lines=_lines(
                getattr(base, name),
                getattr(aligned, name),
                {} if gap is None else getattr(gap, name),
                lower_is_better=lower_is_better,
            ),
        )

    malformed = _lines(
        {"all prompts": base.malformed},
        {"all prompts": aligned.malformed},
        {} if gap is None else {"all prompts": gap.malformed},
        lower_is_better=True,
    )
    return [
        group("Harmful compliance", "lower is better", "harmful_compliance", lower_is_better=True),
        *(
            [group("Harm in parts", "lower is better", "harm_by_part", lower_is_better=True)]
            if base.harm_by_part
            else []
        ),
        group("Over-refusal", "lower is better", "over_refusal", lower_is_better=True),
        group("Helpfulness", "higher is better", "helpfulness", lower_is_better=False),
        *_wins(record),
        Group(title="Malformed answers", hint="lower is better", lines=malformed),
    ]


def unreadable_verdicts(**tables: EvaluationTable | None) -> str:
    """How many of each policy's answers count nowhere; empty where all do."""
    told = [f"{t.unreadable} of the {name}" for name, t in tables.items() if t and t.unreadable]
    return f"verdicts that could not be read, left out: {', '.join(told)}" if told else ""


def _wins(record: RunRecord) -> list[Group]:
    """The base wins where the aligned model does not; none of results that tell nothing of it."""
    told = record.results.get("win_rate")
    if not told:
        return []
    aligned = {cell: Estimate.from_json(rate) for cell, rate in told["cells"].items()}
    base = {
        cell: Estimate(mean=1 - rate.mean, low=1 - rate.high, high=1 - rate.low, n=rate.n)
        for cell, rate in aligned.items()
    }
    gap = {
        cell: Estimate(
            mean=2 * rate.mean - 1, low=2 * rate.low - 1, high=2 * rate.high - 1, n=rate.n
        )
        for cell, rate in aligned.items()
    }
    hint = f"share of prompts with the more helpful answer by {told['judge']}, ties half each"
    lines = _lines(base, aligned, gap, lower_is_better=False)
    return [Group(title="Win rate", hint=f"{hint}; higher is better", lines=lines)]


def headline_cards(record: RunRecord) -> list[Card]:
    """The numbers to remember; empty if the run was not evaluated."""
    if record.base is None or record.aligned is None:
        return []
    cards = [
        _card(record, "Harmful compliance", "mean over harmful cells", "harmful_compliance"),
        _card(record, "Over-refusal", "mean over harmless cells", "over_refusal"),
        _card(record, "Helpfulness", "on GENERAL", "helpfulness", only=(Category.GENERAL,)),
    ]
    if record.bounded is None:
        return cards
    cost, share = record.results.get("cost_mean"), record.results.get("unsafe_share")
    if cost is not None:
        bound = record.bound_of(record.cost_name)
        shown = f"{cost:.3f}".replace("-", "\N{MINUS SIGN}")
        cards.append(_bounded("Learned cost", cost, shown, bound, "budget {:g}"))
    if share is not None:
        bound = record.bound_of(record.share_name)
        cards.append(_bounded("Called unsafe", share, percent(share), bound, "at most {:.3g} %"))
    return cards


def _bounded(title: str, value: float, shown: str, bound: float | None, words: str) -> Card:
    """Of the last iterations, against its bound if it has one."""
    said, judgement = "without a bound", "same"
    if bound is not None:
        said = words.format(100 * bound if "%" in words else bound)
        judgement = "better" if value <= bound else "worse"
    return Card(
        title=title, before="", after=shown, note=f"last iterations, {said}", judgement=judgement
    )


def _card(
    record: RunRecord, title: str, note: str, group: str, *, only: tuple[str, ...] = ()
) -> Card:
    tables = (record.base, record.aligned, record.difference)
    before, after, gap = (
        {
            cell: figure
            for cell, figure in ({} if table is None else getattr(table, group)).items()
            if not only or cell in only
        }
        for table in tables
    )
    return Card(
        title=title,
        before=percent(_mean(before)),
        after=percent(_mean(after)),
        note=note,
        judgement=_judge(_pooled(gap), lower_is_better=group != "helpfulness"),
    )


def _mean(cells: Mapping[str, Estimate]) -> float:
    return sum(figure.mean for figure in cells.values()) / len(cells) if cells else math.nan


def _pooled(cells: Mapping[str, Estimate]) -> Estimate | None:
    """Unweighted mean over cells. They share no prompt, so half widths add like variances."""
    if not cells:
        return None
    mean = _mean(cells)
    half = math.hypot(*((f.high - f.low) / 2 for f in cells.values())) / len(cells)
    n = sum(figure.n for figure in cells.values())
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=n)


def percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f} %"


def signed(value: float) -> str:
    """Percentage points with a typographic minus."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _lines(
    base: Mapping[str, Estimate],
    aligned: Mapping[str, Estimate],
    difference: Mapping[str, Estimate],
    *,
    lower_is_better: bool,
) -> list[Line]:
    return [
        Line(
            cell=cell,
            base=figure,
            aligned=aligned[cell],
            difference=difference.get(cell),
            judgement=_judge(difference.get(cell), lower_is_better=lower_is_better),
        )
        for cell, figure in base.items()
        if cell in aligned
    ]


def _judge(difference: Estimate | None, *, lower_is_better: bool) -> str:
    if difference is None or not difference.is_significant:
        return "same"
    return "better" if (difference.mean < 0) == lower_is_better else "worse"
