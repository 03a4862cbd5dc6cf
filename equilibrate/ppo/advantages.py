"""Advantages with a critic: generalised estimates on one signal, reward or cost."""

from __future__ import annotations

import torch
from torch import Tensor

from equilibrate.tensors import keep, require_same_shape


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates over the response tokens alone.

        delta_t = r_t + gamma V_next - V_t,   A_t = delta_t + gamma * gae_lambda * A_next

    where `next` is the next response token of the row: a foreign token in between is skipped, not
    discounted through. Beyond the last one V = A = 0.

    Args:
        rewards, values: [B, T], one unit; V_t is the value of the prefix just before token t.
        response_mask: [B, T] bool. Other entries may hold anything, nan included.
        gamma, gae_lambda: in [0, 1].
    Returns: advantages, and returns = advantages + values; [B, T], 0 outside the response, no grad.
    Raises: ValueError if shapes differ.
    Source: Schulman et al. 2016, eq. 16.
    """
    require_same_shape(rewards=rewards, values=values, response_mask=response_mask)
    rewards, values = keep(response_mask, rewards, values)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        kept = response_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * gae_lambda * next_advantage
        advantages[:, t] = torch.where(kept, advantage, 0.0)
        next_value = torch.where(kept, values[:, t], next_value)
        next_advantage = torch.where(kept, advantage, next_advantage)
    return advantages, advantages + values
