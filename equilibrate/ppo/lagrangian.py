"""Controllers of the Lagrange multiplier lambda >= 0 of the constraint  mean cost <= budget.

One interface: `value`, `update(mean_cost)`, `state_dict()`, `load_state_dict()`. The mean cost
comes from a `CostWindow`. Plain PPO is `NoMultiplier`. Where the share of unsafe answers is bounded
in place of the mean cost, both it and its bound are weighed by `UNSAFE_COST`.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from equilibrate.errors import ConfigError, NumericsError
from equilibrate.types import is_unsafe

UNSAFE_COST = 4.0
"""What an unsafe answer counts, and a safe one 0, where their share is bounded: about as far as the
mean costs of unsafe and safe answers of a good cost model are apart (2.6 in the built-in world), so
that the gains of a mean cost suit its error too. By itself a share misses its bound by at most 1
upwards and by the bound downwards, and the usual gains take hundreds of iterations to answer that.
"""


def share_cost(cost: float) -> float:
    """An answer's part in the share of unsafe ones; a cost that is not finite stays what it is."""
    return UNSAFE_COST * is_unsafe(cost) if math.isfinite(cost) else cost


class Multiplier(Protocol):
    """lambda; `update` moves it once per iteration, before the policy moves."""

    @property
    def value(self) -> float: ...
    def update(self, mean_cost: float) -> float: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class CostWindow:
    """Mean cost of the last `size` episodes, in cost-model units, before any KL."""

    def __init__(self, size: int) -> None:
        self._costs: deque[float] = deque(maxlen=size)

    def extend(self, costs: Iterable[float]) -> None:
        self._costs.extend(costs)

    def __len__(self) -> int:
        return len(self._costs)

    def mean(self) -> float:
        """Raises: ValueError while no episode has been seen."""
        if not self._costs:
            raise ValueError("the cost window is empty: extend it before asking for its mean")
        return math.fsum(self._costs) / len(self._costs)

    def state_dict(self) -> dict[str, Any]:
        return {"costs": list(self._costs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._costs.clear()
        self._costs.extend(state["costs"])


class NoMultiplier:
    """lambda = 0 for ever: the constraint is off and the reward alone is maximised."""

    value = 0.0

    def update(self, mean_cost: float) -> float:
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class LogSgdMultiplier:
    """Gradient ascent on log lambda: multiplicative, strictly positive, slow to fall.

        lambda <- min(lambda * exp(lr * lambda * (J_C - d)), maximum)

    Args: init in (0, maximum]; lr > 0; budget d in cost units.
    Source: Dai et al. 2023, eq. 31 (update of ln lambda).
    """

    def __init__(self, *, init: float, lr: float, maximum: float, budget: float) -> None:
        if not 0 < init <= maximum:
            raise ConfigError(
                f"constraint.init ({init}) must lie in (0, {maximum}] for log_sgd; try {maximum}"
            )
        self.value = init
        self._lr = lr
        self._maximum = maximum
        self._budget = budget

    def update(self, mean_cost: float) -> float:
        log_value = math.log(self.value) + self._lr * self.value * _violation(
            mean_cost, self._budget
        )
        if log_value >= math.log(self._maximum):
            self.value = self._maximum
        else:
            # exp underflows to an absorbing 0 below about -745.
            self.value = max(math.exp(log_value), sys.float_info.min)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


class ProjectedMultiplier:
    """Projected gradient ascent:  lambda <- clip(lambda + lr * (J_C - d), 0, maximum).

    Source: the bounded additive step of Safe RLHF-V (arXiv 2503.17682), eq. 8.
    """

    def __init__(self, *, init: float, lr: float, maximum: float, budget: float) -> None:
        self.value = min(init, maximum)
        self._lr = lr
        self._maximum = maximum
        self._budget = budget

    def update(self, mean_cost: float) -> float:
        moved = self.value + self._lr * _violation(mean_cost, self._budget)
        self.value = min(max(moved, 0.0), self._maximum)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


class PidMultiplier:
    """PID controller of lambda: reacts to the violation itself, its sum, and a rising cost.

        v = J_C - d;   I <- max(I + v, 0);   D = max(smoothed J_C - the one before, 0)
        lambda <- clip(kp * v + ki * I + kd * D, 0, maximum)

    While lambda sits at the maximum a positive v is not added to I (anti-windup), so that lambda
    falls as soon as the violation ends. I starts at init / ki, so that lambda starts at init.

    Args: kp, ki, kd >= 0; init in [0, maximum], ignored by the controller's memory if ki is 0.
    Source: Stooke et al. 2020 (arXiv 2007.03964), algorithm 2.
    """

    SMOOTHING = 0.8
    """Weight of the past in the cost that is differentiated: the raw difference is mostly noise."""

    def __init__(
        self, *, init: float, kp: float, ki: float, kd: float, maximum: float, budget: float
    ) -> None:
        self.value = min(init, maximum)
        self._gains = (kp, ki, kd)
        self._maximum = maximum
        self._budget = budget
        self._integral = self.value / ki if ki > 0 else 0.0
        self._smoothed_cost: float | None = None

    def update(self, mean_cost: float) -> float:
        kp, ki, kd = self._gains
        violation = _violation(mean_cost, self._budget)
        rise = self._smoothed_rise(mean_cost)
        integral = max(self._integral + violation, 0.0)
        wanted = kp * violation + ki * integral + kd * rise
        if wanted <= self._maximum or violation <= 0:
            self._integral = integral
        self.value = min(max(wanted, 0.0), self._maximum)
        return self.value

    def _smoothed_rise(self, mean_cost: float) -> float:
        previous = mean_cost if self._smoothed_cost is None else self._smoothed_cost
        self._smoothed_cost = self.SMOOTHING * previous + (1 - self.SMOOTHING) * mean_cost
        return max(self._smoothed_cost - previous, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "integral": self._integral,
            "smoothed_cost": self._smoothed_cost,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]
        self._integral = state["integral"]
        self._smoothed_cost = state["smoothed_cost"]


MULTIPLIERS: Mapping[str, Callable[..., Multiplier]] = {
    "log_sgd": LogSgdMultiplier,
    "projected": ProjectedMultiplier,
    "pid": PidMultiplier,
}
"""By `constraint.type`: each takes init, maximum and budget, and what its settings in
`equilibrate.config.train` have beyond `MultiplierConfig`. A new one is a class, a line here, its
settings there, and its test."""


class DelayedMultiplier:
    """Holds any multiplier still for its first `delay` updates."""

    def __init__(self, multiplier: Multiplier, *, delay: int) -> None:
        self._multiplier = multiplier
        self._updates_left = delay

    @property
    def value(self) -> float:
        return self._multiplier.value

    def update(self, mean_cost: float) -> float:
        if self._updates_left > 0:
            self._updates_left -= 1
            return self.value
        return self._multiplier.update(mean_cost)

    def state_dict(self) -> dict[str, Any]:
        return {"updates_left": self._updates_left, "multiplier": self._multiplier.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._updates_left = state["updates_left"]
        self._multiplier.load_state_dict(state["multiplier"])


def _violation(mean_cost: float, budget: float) -> float:
    if not math.isfinite(mean_cost):
        raise NumericsError(
            f"mean cost ({mean_cost}) must be finite; look at the cost model's scores"
        )
    return mean_cost - budget
