"""KL to the frozen reference: the per-token penalty and the controllers of its weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from equilibrate.ppo.masks import keep
from equilibrate.tensors import require_same_shape


def kl_penalty(old_log_probs: Tensor, ref_log_probs: Tensor, response_mask: Tensor) -> Tensor:
    """Single-sample estimate of the KL per token: old_log_probs - ref_log_probs (may be negative).

    Args: all [B, T]; log-probs in nats; response_mask bool.
    Returns: [B, T], nats, 0 outside the response.
    Source: Dai et al. 2023, the penalty of the reward and cost signals.
    """
    require_same_shape(
        old_log_probs=old_log_probs, ref_log_probs=ref_log_probs, response_mask=response_mask
    )
    (penalty,) = keep(response_mask, old_log_probs - ref_log_probs)
    return penalty


HORIZON = 10_000
"""Rollouts over which an adaptive weight may move by a fifth."""


class KLController(Protocol):
    """Weight of the KL penalty; `update` sees the KL of the rollouts just made."""

    @property
    def value(self) -> float: ...
    def update(self, observed_kl: float, num_rollouts: int) -> float: ...
    def state_dict(self) -> dict[str, float]: ...
    def load_state_dict(self, state: Mapping[str, float]) -> None: ...


class FixedKL:
    def __init__(self, coef: float) -> None:
        self.value = coef

    def update(self, observed_kl: float, num_rollouts: int) -> float:
        return self.value

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.value = state["value"]


class AdaptiveKL:
    """Proportional controller of the log of the weight (Ziegler et al. 2019, section 2.2).

        error = clip(observed_kl / target - 1, -0.2, 0.2)
        value <- value * (1 + error * num_rollouts / horizon)

    Args:
        coef: > 0, weight before the first update.
        target: > 0, wanted mean KL, nats per token.
        horizon: rollouts; larger is slower.
    """

    ERROR_LIMIT = 0.2

    def __init__(self, coef: float, *, target: float, horizon: int = HORIZON) -> None:
        self.value = coef
        self._target = target
        self._horizon = horizon

    def update(self, observed_kl: float, num_rollouts: int) -> float:
        error = observed_kl / self._target - 1.0
        error = min(max(error, -self.ERROR_LIMIT), self.ERROR_LIMIT)
        # More than 5 horizons at once would turn the weight negative.
        self.value *= 1.0 + error * min(num_rollouts / self._horizon, 1.0)
        return self.value

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.value = state["value"]


CONTROLLERS: Mapping[str, Callable[..., KLController]] = {"fixed": FixedKL, "adaptive": AdaptiveKL}
"""By `ppo.kl.type`; each takes what its settings have."""
