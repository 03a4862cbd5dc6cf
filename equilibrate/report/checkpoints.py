"""Which checkpoint of a run is the best one within its budget, by what the run recorded.

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
    cost: float
    """The cost that the budget bounds; nan where none was recorded."""


def standings(record: RunRecord, kept: Iterable[int]) -> list[Standing]:
    """Of these checkpoints, in their order; one without a recorded iteration before it has none."""
    found = []
    for iteration in kept:
        first = iteration - LAST_ITERATIONS
        rows = [row for row in record.metrics if first <= row["iteration"] < iteration]
        costs, rewards = numbers(rows, record.cost_name), numbers(rows, "reward")
        if rewards:
            cost = fmean(costs) if costs else math.nan
            found.append(Standing(iteration=iteration, reward=fmean(rewards), cost=cost))
    return found


def best_checkpoint(record: RunRecord, kept: Iterable[int]) -> Standing:
    """The one with the highest reward among those whose cost is within the budget.

    Raises: DataError if there is none, naming the one whose cost is nearest.
    """
    found, budget = standings(record, kept), record.budget
    if not found:
        raise DataError(
            f"{record.name}: no checkpoint has a recorded iteration before it; try --checkpoint "
            "latest"
        )
    within = [one for one in found if budget is None or one.cost <= budget]
    if not within:
        nearest = min(found, key=lambda one: math.inf if math.isnan(one.cost) else one.cost)
        raise DataError(
            f"{record.name}: no checkpoint holds its {record.cost_name} within the budget "
            f"({budget:g}), in the mean of the last {LAST_ITERATIONS} iterations before it; "
            f"nearest is {nearest.iteration} with {nearest.cost:.4g}: try --checkpoint "
            f"{nearest.iteration}"
        )
    return max(within, key=lambda one: (one.reward, one.iteration))
