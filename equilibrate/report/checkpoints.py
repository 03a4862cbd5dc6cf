"""Which checkpoint of a run is the best one within its bound, by what the run recorded.

A single iteration is too noisy to judge a policy by, and not every checkpoint is evaluated. So each
is held to the same record as the end of a run is: the means of `metrics.jsonl` over the last
`LAST_ITERATIONS` iterations before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from equilibrate.errors import DataError
from equilibrate.report.inputs import LAST_ITERATIONS, RunRecord, numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the iterations before a checkpoint gave, in the mean."""

    iteration: int
    reward: float
    bounded: float
    """The metric that is bounded; nan where nothing is, or none was recorded."""


def standings(record: RunRecord, kept: Iterable[int]) -> list[Standing]:
    """Of these checkpoints, in their order; one without a recorded iteration before it has none."""
    found = []
    for iteration in kept:
        first = iteration - LAST_ITERATIONS
        rows = [row for row in record.metrics if first <= row["iteration"] < iteration]
        values = numbers(rows, record.bounded[0]) if record.bounded else []
        if rewards := numbers(rows, "reward"):
            mean = fmean(values) if values else math.nan
            found.append(Standing(iteration=iteration, reward=fmean(rewards), bounded=mean))
    return found


def best_checkpoint(record: RunRecord, kept: Iterable[int]) -> Standing:
    """The one with the highest reward among those that hold what is bounded.

    Raises: DataError if there is none, naming the one that is nearest.
    """
    found = standings(record, kept)
    if not found:
        raise DataError(
            f"{record.name}: no checkpoint has a recorded iteration before it; try --checkpoint "
            "latest"
        )
    if record.bounded is not None:
        metric, bound = record.bounded
        nearest = min(found, key=lambda one: math.inf if math.isnan(one.bounded) else one.bounded)
        found = [one for one in found if one.bounded <= bound]
        if not found:
            raise DataError(
                f"{record.name}: no checkpoint holds its {metric} within the bound ({bound:g}), in "
                f"the mean of the last {LAST_ITERATIONS} iterations before it; nearest is "
                f"{nearest.iteration} with {nearest.bounded:.4g}: try --checkpoint "
                f"{nearest.iteration}"
            )
    return max(found, key=lambda one: (one.reward, one.iteration))
