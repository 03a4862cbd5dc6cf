"""KL to the frozen reference: the per-token penalty, its place in the rewards, its weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from equilibrate.tensors import keep, last_kept, require_same_shape


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


def shape_rewards(
    score: Tensor,
    kl: Tensor,
    response_mask: Tensor,
    *,
    kl_coef: float,
    sign: Literal[1, -1],
    clip: float,
) -> Tensor:
    """Score at the last response token, KL penalty at all of them, clamped to +-clip.

        out_t = clamp(1[t is the last response token] * score - sign * kl_coef * kl_t, -clip, clip)

    The opposite signs for reward and cost keep the strength of the penalty at exactly kl_coef in
    (A_R - lambda A_C) / (1 + lambda), for every lambda.

    Args:
        score: [B], reward or cost of the finished response.
        kl: [B, T], nats, from `kl_penalty`.
        response_mask: [B, T] bool. A row without a response gives zeros.
        sign: +1 for a reward (KL lowers it), -1 for a cost (KL raises it).
        clip: > 0, score units (Safe RLHF uses 50).
    Returns: [B, T], 0 outside the response.
    Raises: ValueError if the shapes do not belong together.
    Source: Dai et al. 2023, appendix B; PKU-Alignment/safe-rlhf.
    """
    require_same_shape(kl=kl, response_mask=response_mask)
    require_same_shape(score=score, rows=response_mask.any(1))
    end_score = torch.where(last_kept(response_mask), score[:, None], 0.0)
    (shaped,) = keep(response_mask, end_score - sign * kl_coef * kl)
    return shaped.clamp(-clip, clip)
