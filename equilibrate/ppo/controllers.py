"""What steers the loop: each `observe`s the rollouts just scored and offers a `value`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from equilibrate.ppo.kl import KLController
from equilibrate.ppo.lagrangian import CostWindow, Multiplier
from equilibrate.types import Category, ScoredRollout


class CostConstraint:
    """Multiplier of the constraint on the mean cost of chosen classes.

    Args:
        multiplier: any controller of `ppo.lagrangian`.
        window: the episodes whose mean cost it sees.
        categories: classes that count; rollouts of others leave the window alone.
    """

    def __init__(
        self, multiplier: Multiplier, window: CostWindow, categories: Collection[Category]
    ) -> None:
        self._multiplier = multiplier
        self._window = window
        self._categories = frozenset(categories)

    @property
    def value(self) -> float:
        return self._multiplier.value

    @property
    def mean_cost(self) -> float:
        """Mean cost in the window, cost units; nan while it is empty."""
        return self._window.mean() if len(self._window) else math.nan

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        """Take in the costs and move the multiplier once; without any cost so far it stays.

        A cost that is not finite stays out: its update is skipped, and the window must outlive it.
        """
        self._window.extend(
            one.cost
            for one in scored
            if one.rollout.category in self._categories and math.isfinite(one.cost)
        )
        if len(self._window):
            self._multiplier.update(self._window.mean())

    def state_dict(self) -> dict[str, Any]:
        return {"multiplier": self._multiplier.state_dict(), "window": self._window.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._multiplier.load_state_dict(state["multiplier"])
        self._window.load_state_dict(state["window"])


class KLWeight:
    """Weight of the KL penalty, steered by the mean KL per response token of the rollouts."""

    def __init__(self, controller: KLController) -> None:
        self._controller = controller

    @property
    def value(self) -> float:
        return self._controller.value

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        """A mean KL that is not finite, or of no token, leaves the weight alone."""
        observed = mean_kl(scored)
        if math.isfinite(observed):
            self._controller.update(observed, len(scored))

    def state_dict(self) -> dict[str, Any]:
        return dict(self._controller.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._controller.load_state_dict(state)


def mean_kl(scored: Sequence[ScoredRollout]) -> float:
    """Mean of rollout_log_probs - ref_log_probs over response tokens, nats; nan without any."""
    penalties = [
        (one.rollout.rollout_log_probs - one.ref_log_probs)[one.rollout.response_mask]
        for one in scored
    ]
    kept = np.concatenate(penalties, dtype=np.float64) if penalties else np.empty(0)
    return float(kept.sum() / len(kept)) if len(kept) else math.nan
