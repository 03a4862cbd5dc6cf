"""What somebody who watched the numbers would call out: said once in the log, and the run goes on.

Scores that mean nothing (`ScoreWatch`), and a budget that no price within the cap reaches
(`BudgetWatch`, which the report asks as well).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from equilibrate.config.constraint import Constraint
from equilibrate.types import Category, ScoredRollout, ScorerKind

logger = logging.getLogger(__name__)

SCORE_ITERATIONS = 3
"""Iterations in a row before a look of the scores is an alarm: one may be chance."""
CAP_ITERATIONS = 20
"""Iterations in a row that lambda spends at its cap before the budget counts as out of reach."""

Calibration = Mapping[str, float]


class ScoreWatch:
    """Numbers that are not finite, scores that are all equal, a cost whose sign is turned round."""

    def __init__(self, calibrations: Mapping[ScorerKind, Calibration]) -> None:
        """Args: calibrations: of every scorer that the run has, as its sidecar holds it."""
        self._kinds = tuple(calibrations)
        self._cost = calibrations.get("cost", {})
        self._in_a_row: Counter[str] = Counter()
        self._said: set[str] = set()

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        broken = Counter(name for one in scored for name in one.broken)
        for name, count in broken.items():
            self._say(
                f"{name} broken",
                f"the {name} model gave {count} of {len(scored)} rollouts a number that is not "
                "finite; they are left out of the training",
            )
        whole = [one for one in scored if not one.broken]
        for kind in self._kinds:
            scores = [getattr(one, kind) for one in whole]
            if self._lasts(f"{kind} constant", len(scores) > 1 and len(set(scores)) == 1):
                self._say(
                    f"{kind} constant",
                    f"the {kind} model has given all {len(scores)} rollouts the same score "
                    f"({scores[0]:.4g}) for {SCORE_ITERATIONS} iterations: nothing is learned from "
                    "it; look at its folder, and at the answers",
                )
        costs = [one.cost for one in whole if one.rollout.category is Category.GENERAL]
        if self._lasts("cost sign", self._reads_unsafe(costs)):
            self._say(
                "cost sign",
                f"the cost model scores answers to everyday prompts {np.mean(costs):.3g} on average"
                f", nearer to what it gave unsafe answers when it was calibrated "
                f"({self._cost['unsafe_mean']:.3g}) than safe ones ({self._cost['safe_mean']:.3g})"
                "; is its sign turned round?",
            )

    def _reads_unsafe(self, costs: Sequence[float]) -> bool:
        safe, unsafe = self._cost.get("safe_mean"), self._cost.get("unsafe_mean")
        if safe is None or unsafe is None or not costs:
            return False
        mean = float(np.mean(costs))
        return abs(mean - unsafe) < abs(mean - safe)

    def _lasts(self, name: str, happens: bool) -> bool:
        self._in_a_row[name] = self._in_a_row[name] + 1 if happens else 0
        return self._in_a_row[name] >= SCORE_ITERATIONS

    def _say(self, name: str, message: str) -> None:
        if name not in self._said:
            self._said.add(name)
            logger.warning(message)

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": dict(self._in_a_row), "said": sorted(self._said)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._in_a_row = Counter(state["in_a_row"])
        self._said = set(state["said"])


class BudgetWatch:
    """Whether lambda stays at its cap while the cost stays above the budget, by the metrics."""

    def __init__(self, *, cap: float, budget: float, cost_name: str) -> None:
        """Args: cost_name: the metric that is bounded, a mean cost or a share of unsafe answers."""
        self._cap = cap
        self._budget = budget
        self._cost_name = cost_name
        is_share = cost_name.startswith("unsafe_fraction")
        self._key = "constraint.max_unsafe_share" if is_share else "constraint.budget"
        self._costs: list[float] = []
        self._found = ""
        self._longest = 0

    def observe(self, row: Mapping[str, Any]) -> str:
        """Take in the metrics of one iteration, null or absent where there is none.

        Returns: what is to be said of the longest such stretch so far; empty without one.
        """
        if (row.get("multiplier") or 0.0) < self._cap:
            self._costs.clear()
            return self._found
        cost = row.get(self._cost_name)
        if cost is not None and math.isfinite(cost):
            self._costs.append(cost)
        if len(self._costs) >= max(CAP_ITERATIONS, self._longest + 1):
            mean = float(np.mean(self._costs))
            if mean > self._budget:
                self._longest = len(self._costs)
                self._found = (
                    f"lambda stood at its cap ({self._cap:g}) for {self._longest} iterations in a "
                    f"row while {self._cost_name} ({mean:.3g} on average) stayed above the budget "
                    f"({self._budget:g}): the run could not reach it; raise constraint.max or "
                    f"{self._key}, or give the safety classes more of fdc.mixture"
                )
        return self._found

    def state_dict(self) -> dict[str, Any]:
        return {"costs": list(self._costs), "found": self._found, "longest": self._longest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._costs = list(state["costs"])
        self._found, self._longest = state["found"], state["longest"]


class RunWatch:
    """All of it, for the loop; saved with the run, so that one that was interrupted counts on."""

    def __init__(
        self, calibrations: Mapping[ScorerKind, Calibration], constraint: Constraint
    ) -> None:
        self._scores = ScoreWatch(calibrations)
        self._budget = constraint and BudgetWatch(
            cap=constraint.max, budget=constraint.bounded[1], cost_name=constraint.bounded[0]
        )
        self._has_said = False

    def observe(self, scored: Sequence[ScoredRollout], row: Mapping[str, float]) -> None:
        """Args: row: the metrics of the iteration."""
        self._scores.observe(scored)
        found = self._budget.observe(row) if self._budget else ""
        if found and not self._has_said:
            self._has_said = True
            logger.warning(found)

    def state_dict(self) -> dict[str, Any]:
        return {
            "scores": self._scores.state_dict(),
            "budget": self._budget and self._budget.state_dict(),
            "has_said": self._has_said,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Args: state: empty for a checkpoint that holds none, which leaves all as it is."""
        if not state:
            return
        self._scores.load_state_dict(state["scores"])
        if self._budget and state["budget"]:
            self._budget.load_state_dict(state["budget"])
        self._has_said = state["has_said"]
