"""Every advantage estimator by the name that `ppo.advantage` gives it.

A new one is a function of one signal, reward or cost, beside `gae` or `rloo`; a line in
`ESTIMATORS`; a line in `equilibrate.config.train.ADVANTAGES`, which says what it needs of a run;
and its test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibrate.config.train import AdvantageName, PPOConfig
from equilibrate.ppo.advantages import gae
from equilibrate.ppo.group_advantages import grpo, reinforce_plus_plus, rloo


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """The reward or the cost of a batch of responses, in its own unit."""

    scores: Tensor
    """[B]"""
    penalties: Tensor
    """[B, T], the KL penalty alone."""
    rewards: Tensor
    """[B, T], score and penalty together, from `shape_rewards`."""
    values: Tensor
    """[B, T], of the critic; 0 without one."""
    response_mask: Tensor
    groups: Tensor
    """[B] int64, the same number for all responses to one prompt."""


Estimator = Callable[[Signal, PPOConfig], tuple[Tensor, Tensor]]
"""Advantages and returns, [B, T] each, 0 outside the response. Without a critic nothing fits the
returns, and they are 0."""


def _gae(signal: Signal, ppo: PPOConfig) -> tuple[Tensor, Tensor]:
    return gae(
        signal.rewards,
        signal.values,
        signal.response_mask,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
    )


def _rloo(signal: Signal, ppo: PPOConfig) -> tuple[Tensor, Tensor]:
    return _without_returns(rloo(signal.rewards, signal.response_mask, signal.groups))


def _grpo(signal: Signal, ppo: PPOConfig) -> tuple[Tensor, Tensor]:
    # Its scores stand alone: the penalty joins the finished advantages.
    advantages = grpo(signal.scores, signal.response_mask, signal.groups)
    return _without_returns(advantages + signal.penalties)


def _reinforce_plus_plus(signal: Signal, ppo: PPOConfig) -> tuple[Tensor, Tensor]:
    return _without_returns(
        reinforce_plus_plus(signal.rewards, signal.response_mask, gamma=ppo.gamma)
    )


def _without_returns(advantages: Tensor) -> tuple[Tensor, Tensor]:
    return advantages, torch.zeros_like(advantages)


ESTIMATORS: Mapping[AdvantageName, Estimator] = {
    "gae": _gae,
    "rloo": _rloo,
    "grpo": _grpo,
    "reinforce_plus_plus": _reinforce_plus_plus,
}
