"""Claims to verdicts: one gap per seed, its interval over seeds, and the rule that decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, stdev
from typing import Literal

from equilibrate.config.study import Claim
from equilibrate.evaluation import (
    MIN_CLAIMED,
    Estimate,
    gap_at_equal_harm,
    hypervolume,
    mean_interval,
)
from equilibrate.study.figures import figure_or_nan, front_point, is_share
from equilibrate.study.results import ByArm, RunResult

MIN_SEEDS = 2
"""Below it a gap has no spread, and nothing is decided."""
FIRM_SEEDS = 5
"""Below it a verdict is preliminary."""
_NO_SPREAD = 1e-9
"""Results are rounded to six decimals: a smaller deviation is rounding of the arithmetic."""


class ClaimVerdict(StrEnum):
    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    """The interval holds values of both kinds: more seeds may decide."""
    NOT_MEASURED = "not measured"
    """Fewer than two seeds have a result on both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedClaim:
    """A claim with what was measured; gaps are `of` - `against`, in units of the figure."""

    claim: Claim
    verdict: ClaimVerdict
    gaps: Mapping[int, float]
    """Of each seed that has a finite number on both sides."""
    gap: Estimate | None
    """Mean with its t-interval over seeds; None without a seed."""
    effect_size: float
    """Cohen's d_z: mean over standard deviation of the gaps; nan without a spread."""

    @property
    def num_seeds(self) -> int:
        return len(self.gaps)

    @property
    def is_preliminary(self) -> bool:
        return MIN_SEEDS <= self.num_seeds < FIRM_SEEDS

    @property
    def is_share(self) -> bool:
        """Whether gaps are shown in percentage points; the area under a front is one of 1 x 1."""
        return self.claim.front is not None or is_share(self.claim.figure)


def judge_claim(claim: Claim, by_arm: ByArm) -> JudgedClaim:
    """Measure a claim over the seeds that all its arms have finished, each seed by itself."""
    of, against = (_by_seed(arms, by_arm) for arms in (claim.of, claim.against))
    measured = {
        seed: _gap(claim, of[seed], against[seed]) for seed in sorted(of.keys() & against.keys())
    }
    by_seed = {seed: gap for seed, gap in measured.items() if math.isfinite(gap)}
    gaps = list(by_seed.values())
    gap = mean_interval(gaps) if gaps else None
    return JudgedClaim(
        claim=claim,
        verdict=decide(gap, expect=claim.expect, margin=claim.margin),
        gaps=by_seed,
        gap=gap,
        effect_size=effect_size(gaps),
    )


def decide(
    gap: Estimate | None, *, expect: Literal["higher", "lower", "same"], margin: float
) -> ClaimVerdict:
    """Where the interval of a gap lies, against where the claim wants it.

    higher: wholly above margin is reproduced, wholly at or below it is not; lower is its mirror.
    same (equivalence): wholly inside (-margin, margin) is reproduced, wholly outside is not.
    Anything else is inconclusive, so is the same gap in every one of fewer than `MIN_CLAIMED`
    seeds (an interval without width), and fewer than two seeds are no measurement.
    """
    if gap is None or gap.n < MIN_SEEDS:
        return ClaimVerdict.NOT_MEASURED
    if gap.n < MIN_CLAIMED and gap.high - gap.low < _NO_SPREAD:
        return ClaimVerdict.INCONCLUSIVE
    low, high = gap.low, gap.high
    if expect == "same":
        holds = -margin < low and high < margin
        fails = low >= margin or high <= -margin
    else:
        if expect == "lower":
            low, high = -high, -low
        holds, fails = low > margin, high <= margin
    if holds:
        return ClaimVerdict.REPRODUCED
    return ClaimVerdict.NOT_REPRODUCED if fails else ClaimVerdict.INCONCLUSIVE


def effect_size(gaps: Sequence[float]) -> float:
    """Cohen's d_z = mean / standard deviation (n - 1) of paired gaps; nan without a spread.

    Source: Cohen 1988, section 2.3.5.
    """
    if len(gaps) < MIN_SEEDS or (spread := stdev(gaps)) < _NO_SPREAD:
        return math.nan
    return fmean(gaps) / spread


def _by_seed(arms: Sequence[str], by_arm: ByArm) -> dict[int, list[RunResult]]:
    """Results of a side for each seed that all its arms have finished."""
    seeds = set.intersection(*(set(by_arm[arm]) for arm in arms))
    return {seed: [by_arm[arm][seed] for arm in arms] for seed in seeds}


def _gap(claim: Claim, of: Sequence[RunResult], against: Sequence[RunResult]) -> float:
    """`of` minus `against` in one seed; nan where there is no number."""
    if claim.front is None:
        other = claim.against_figure or claim.figure
        return figure_or_nan(of[0], claim.figure) - figure_or_nan(against[0], other)
    axes = claim.front
    sides = [[front_point(result, axes) for result in results] for results in (of, against)]
    # A front without one of its points is another front, and no measure of this one.
    if not all(math.isfinite(x) and math.isfinite(y) for side in sides for x, y in side):
        return math.nan
    if claim.compare == "equal_harm":
        return gap_at_equal_harm(*sides)
    more, less = (hypervolume([x for x, _ in side], [y for _, y in side]) for side in sides)
    return more - less
