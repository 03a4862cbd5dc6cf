"""The two numbers that steer an update, fed from scored rollouts: multiplier and KL weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from equilibrate.config.constraint import Constraint, MultiplierConfig
from equilibrate.config.train import KLWeight, StopKL, TrainConfig
from equilibrate.evaluation.statistics import wilson_interval
from equilibrate.ppo import kl as ppo_kl
from equilibrate.ppo import lagrangian
from equilibrate.types import ScoredRollout


class CostController:
    """Moves the multiplier on the mean cost of the latest episodes that the constraint covers, or
    on the share of them that is unsafe."""

    def __init__(self, constraint: Constraint) -> None:
        """`None` switches the constraint off: plain PPO."""
        self._safety_only = constraint is not None and constraint.scope == "safety"
        self._bounds_share = constraint is not None and constraint.max_unsafe_share is not None
        self._by_upper_bound = constraint is not None and constraint.by_upper_bound
        self._window = lagrangian.CostWindow(constraint.window if constraint else 1)
        self._multiplier = _make_multiplier(constraint)

    @property
    def value(self) -> float:
        return self._multiplier.value

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        """Move once, if there is a new cost to move on: old ones have been answered already.

        Args: scored: with finite scores.
        """
        costs = [
            lagrangian.share_cost(episode.cost) if self._bounds_share else episode.cost
            for episode in scored
            if episode.rollout.category.is_safety or not self._safety_only
        ]
        if costs:
            self._window.extend(costs)
            self._multiplier.update(self._level())

    def _level(self) -> float:
        """What lambda follows: the mean cost, or the share in its units."""
        mean = self._window.mean()
        if not self._by_upper_bound or not math.isfinite(mean):
            return mean
        num_unsafe = round(mean / lagrangian.UNSAFE_COST * len(self._window))
        return lagrangian.UNSAFE_COST * wilson_interval(num_unsafe, len(self._window)).high

    def state_dict(self) -> dict[str, Any]:
        return {
            "window": self._window.state_dict(),
            "multiplier": self._multiplier.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._window.load_state_dict(state["window"])
        self._multiplier.load_state_dict(state["multiplier"])


class KLController:
    """Moves the weight of the KL penalty on the mean KL of the latest rollouts, nats per token."""

    def __init__(self, config: KLWeight) -> None:
        self._controller = ppo_kl.CONTROLLERS[config.type](
            **config.model_dump(exclude={"type", *StopKL.model_fields})
        )

    @property
    def value(self) -> float:
        return self._controller.value

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        total = sum(_kl_sum(episode) for episode in scored)
        num_tokens = sum(int(episode.rollout.response_mask.sum()) for episode in scored)
        if num_tokens:
            self._controller.update(total / num_tokens, len(scored))

    def state_dict(self) -> dict[str, Any]:
        return dict(self._controller.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._controller.load_state_dict(state)


class KLStop:
    """Ends a run whose policy has left the reference too far behind."""

    def __init__(self, stop_at: float | None) -> None:
        """Args: stop_at: nats per token; None never ends it."""
        self._stop_at = stop_at
        self._kl: float | None = None

    @property
    def is_reached(self) -> bool:
        return _is_above(self._kl, self._stop_at)

    def observe(self, values: Mapping[str, float]) -> None:
        """Args: values: the metrics of an iteration; one without `kl` says nothing."""
        self._kl = values.get("kl", self._kl)

    def state_dict(self) -> dict[str, Any]:
        return {"kl": self._kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kl = state.get("kl")


def why_stopped(config: TrainConfig, iterations: int | None, kl: float | None) -> str:
    """Why a run has ended before its last iteration, for people; empty if it has not.

    Args:
        iterations: done.
        kl: to the reference in the last of them, nats per token.
    """
    stop_at = config.ppo.kl.stop_at
    if iterations is None or iterations >= config.iterations or not _is_above(kl, stop_at):
        return ""
    return (
        f"the KL to the reference, {kl:.4g} nats per token in iteration {iterations - 1}, is above "
        f"ppo.kl.stop_at ({stop_at:g}); {iterations} of {config.iterations} iterations were done"
    )


def _is_above(kl: float | None, stop_at: float | None) -> bool:
    return kl is not None and stop_at is not None and kl > stop_at


def _kl_sum(episode: ScoredRollout) -> float:
    rollout = episode.rollout
    difference = rollout.rollout_log_probs - episode.ref_log_probs
    return float(difference[rollout.response_mask].sum())


def _make_multiplier(constraint: Constraint) -> lagrangian.Multiplier:
    if constraint is None:
        return lagrangian.NoMultiplier()
    share = constraint.max_unsafe_share
    multiplier = lagrangian.MULTIPLIERS[constraint.type](
        init=constraint.init,
        maximum=constraint.max,
        budget=constraint.budget if share is None else lagrangian.UNSAFE_COST * share,
        **constraint.model_dump(exclude={"type", *MultiplierConfig.model_fields}),
    )
    return lagrangian.DelayedMultiplier(multiplier, delay=constraint.delay)
