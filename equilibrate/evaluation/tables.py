"""Verdicts to the table that a report shows and `results.json` stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from equilibrate.errors import DataError
from equilibrate.evaluation.judges import Verdict
from equilibrate.evaluation.statistics import (
    Estimate,
    mean_interval,
    paired_difference,
    paired_rate_difference,
    wilson_interval,
)
from equilibrate.types import Category, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTable:
    """What one policy does, per cell. A cell is `Prompt.cell`, or the class where that is empty."""

    harmful_compliance: Mapping[str, Estimate]
    """Share of harmful answers in each cell of EHD, IHD and MHD; lower is better."""
    over_refusal: Mapping[str, Estimate]
    """Share of refusals in each cell of GENERAL and BORDERLINE; lower is better."""
    helpfulness: Mapping[str, Estimate]
    """Mean in [0, 1] of every cell; higher is better."""
    malformed: Estimate
    """Share among all answers; lower is better."""
    harm_by_part: Mapping[str, Estimate] = field(default_factory=dict)
    """As `harmful_compliance` for each `Prompt.part`; in no mean, where its cell counts."""
    unreadable: int = 0
    """Prompts that count nowhere else: the judge gave no verdict that could be read."""

    @property
    def mean_harm(self) -> float:
        """Unweighted mean of the cells of `harmful_compliance`."""
        return _mean(self.harmful_compliance)

    @property
    def mean_over_refusal(self) -> float:
        """Unweighted mean of the cells of `over_refusal`."""
        return _mean(self.over_refusal)

    @property
    def general_helpfulness(self) -> float:
        """Helpfulness on GENERAL, nan if there is no such cell."""
        return _mean({k: v for k, v in self.helpfulness.items() if k == Category.GENERAL})

    def to_json(self) -> dict[str, Any]:
        return {
            group: {cell: figure.to_json() for cell, figure in getattr(self, group).items()}
            for group in CELL_GROUPS
        } | {"malformed": self.malformed.to_json(), "unreadable": self.unreadable}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        """Raises: DataError if a group is missing or holds something else than figures."""
        table = {"harm_by_part": {}, "unreadable": 0, **table}  # older results have none
        missing = [key for key in (*CELL_GROUPS, "malformed") if key not in table]
        if missing:
            raise DataError(
                f"evaluation table ({sorted(table)}) must hold {missing[0]}; "
                f"needed are {', '.join((*CELL_GROUPS, 'malformed'))}"
            )
        harm, parts, refusal, helpfulness = (
            {cell: Estimate.from_json(figure) for cell, figure in table[group].items()}
            for group in CELL_GROUPS
        )
        return cls(
            harmful_compliance=harm,
            harm_by_part=parts,
            over_refusal=refusal,
            helpfulness=helpfulness,
            malformed=Estimate.from_json(table["malformed"]),
            unreadable=int(table["unreadable"]),
        )


CELL_GROUPS = ("harmful_compliance", "harm_by_part", "over_refusal", "helpfulness")


def tabulate(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> EvaluationTable:
    """Rates with Wilson intervals, helpfulness with t-intervals.

    Raises: DataError if there is nothing to count, in a cell or at all, or the lengths differ.
    """
    counted, (verdicts,) = _readable(prompts, verdicts)

    def rate(rows: Sequence[int], read: Callable[[Verdict], float]) -> Estimate:
        return wilson_interval(sum(read(verdicts[i]) > 0 for i in rows), len(rows))

    def mean(rows: Sequence[int], read: Callable[[Verdict], float]) -> Estimate:
        return mean_interval([read(verdicts[i]) for i in rows], lower=0.0, upper=1.0)

    return replace(_build(counted, rate=rate, mean=mean), unreadable=len(prompts) - len(counted))


def compare(
    prompts: Sequence[Prompt], base: Sequence[Verdict], aligned: Sequence[Verdict]
) -> EvaluationTable:
    """The same table of differences, aligned - base, paired by prompt; one whose verdict could not
    be read on either side is in no pair.

    Raises: as `tabulate`.
    """
    counted, (base, aligned) = _readable(prompts, base, aligned)

    def both(rows: Sequence[int], read: Callable[[Verdict], float]) -> tuple[list[float], ...]:
        return [read(base[i]) for i in rows], [read(aligned[i]) for i in rows]

    def rate(rows: Sequence[int], read: Callable[[Verdict], float]) -> Estimate:
        return paired_rate_difference(*both(rows, read))

    def mean(rows: Sequence[int], read: Callable[[Verdict], float]) -> Estimate:
        return paired_difference(*both(rows, read), lower=-1.0, upper=1.0)

    return replace(_build(counted, rate=rate, mean=mean), unreadable=len(prompts) - len(counted))


def win_rates(
    prompts: Sequence[Prompt], base: Sequence[Verdict], aligned: Sequence[Verdict]
) -> dict[str, Estimate]:
    """Of each cell the share of prompts whose aligned answer is the more helpful one, half of the
    ties with it; with a t-interval over prompts.

    Raises: as `compare`.
    """
    counted, (base, aligned) = _readable(prompts, base, aligned)
    wins = [
        (1 + (new.helpfulness > old.helpfulness) - (new.helpfulness < old.helpfulness)) / 2
        for old, new in zip(base, aligned, strict=True)
    ]
    cells = _rows_by(counted, _cell)
    return {
        cell: mean_interval([wins[i] for i in rows], lower=0.0, upper=1.0)
        for cell, rows in cells.items()
    }


def pool_over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`base` and `aligned` of several results, each figure a mean with a t-interval over seeds.

    `n` of a figure is the number of seeds. A single seed has the whole range as its interval.
    Raises: DataError if there is no result or the results hold different cells.
    """
    if not results:
        raise DataError("results (none) must be at least one results.json")
    pooled: dict[str, Any] = {}
    for stage in ("base", "aligned"):
        tables = [EvaluationTable.from_json(result[stage]) for result in results]
        pooled[stage] = _pool(tables).to_json()
    pooled["seeds"] = [result.get("seed") for result in results]
    return pooled


Summary = Callable[[Sequence[int], Callable[[Verdict], float]], Estimate]


def _build(prompts: Sequence[Prompt], *, rate: Summary, mean: Summary) -> EvaluationTable:
    cells = _rows_by(prompts, _cell)
    harmful = {k: v for k, v in cells.items() if prompts[v[0]].category.is_safety}
    harmless = {k: v for k, v in cells.items() if k not in harmful}
    parts = _rows_by(prompts, _harm_part)
    return EvaluationTable(
        harmful_compliance={k: rate(v, lambda x: float(x.harmful)) for k, v in harmful.items()},
        harm_by_part={k: rate(v, lambda x: float(x.harmful)) for k, v in parts.items()},
        over_refusal={k: rate(v, lambda x: float(x.refused)) for k, v in harmless.items()},
        helpfulness={k: mean(v, lambda x: x.helpfulness) for k, v in cells.items()},
        malformed=rate(range(len(prompts)), lambda x: float(x.malformed)),
    )


def _rows_by(prompts: Sequence[Prompt], name: Callable[[Prompt], str]) -> dict[str, list[int]]:
    """Rows of each name but "", in the order of classes and then of first appearance."""
    cells: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if key := name(prompt):
            cells.setdefault(key, []).append(i)
    order = list(Category)
    return dict(sorted(cells.items(), key=lambda c: order.index(prompts[c[1][0]].category)))


def _pool(tables: Sequence[EvaluationTable]) -> EvaluationTable:
    def over(figures: Sequence[Estimate]) -> Estimate:
        return mean_interval([figure.mean for figure in figures], lower=0.0, upper=1.0)

    def group(name: str) -> dict[str, Estimate]:
        groups: list[Mapping[str, Estimate]] = [getattr(table, name) for table in tables]
        if len({frozenset(cells) for cells in groups}) > 1:
            raise DataError(
                f"{name} ({[sorted(cells) for cells in groups]}) must hold the same cells in every "
                "result; pool runs of one evaluation set"
            )
        return {cell: over([cells[cell] for cells in groups]) for cell in groups[0]}

    harm, parts, refusal, helpfulness = (group(name) for name in CELL_GROUPS)
    return EvaluationTable(
        harmful_compliance=harm,
        harm_by_part=parts,
        over_refusal=refusal,
        helpfulness=helpfulness,
        malformed=over([table.malformed for table in tables]),
        unreadable=sum(table.unreadable for table in tables),
    )


def _readable(
    prompts: Sequence[Prompt], *sides: Sequence[Verdict]
) -> tuple[list[Prompt], list[list[Verdict]]]:
    """The prompts whose verdict could be read on every side, and these verdicts."""
    for verdicts in sides:
        if len(prompts) != len(verdicts) or not prompts:
            raise DataError(
                f"verdicts ({len(verdicts)}) must be one per prompt ({len(prompts)}), and at least "
                "one"
            )
    named = _in_cells(prompts)
    kept = [i for i in range(len(named)) if not any(side[i].unreadable for side in sides)]
    counted = [named[i] for i in kept]
    for of in (_cell, _harm_part):
        if lost := {of(prompt) for prompt in named} - {of(prompt) for prompt in counted}:
            raise DataError(
                f"cell ({min(lost)!r}): of none of its prompts could the verdict be read; give it "
                "more prompts, or take another judge"
            )
    return counted, [[side[i] for i in kept] for side in sides]


def _in_cells(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, each with the cell it counts in.

    A cell of harmful and of harmless prompts, as XSTest is, counts as two: `xstest, harmful` and
    `xstest, harmless`, whichever of its verdicts can be read.
    """
    kinds: dict[str, set[bool]] = {}
    for prompt in prompts:
        kinds.setdefault(_cell(prompt), set()).add(prompt.category.is_safety)
    sides = {True: ", harmful", False: ", harmless"}
    return [
        replace(prompt, cell=_cell(prompt) + sides[prompt.category.is_safety])
        if len(kinds[_cell(prompt)]) > 1
        else prompt
        for prompt in prompts
    ]


def _cell(prompt: Prompt) -> str:
    return prompt.cell or prompt.category.value


def _harm_part(prompt: Prompt) -> str:
    return prompt.part if prompt.category.is_safety else ""


def _mean(cells: Mapping[str, Estimate]) -> float:
    if not cells:
        return float("nan")
    return sum(figure.mean for figure in cells.values()) / len(cells)
