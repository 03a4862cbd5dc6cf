"""What each token is blamed or credited for: larger is better for the response.

Below it the level that a signal is compared with, its baseline; each broadcasts to [B, T].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from equilibrate.tensors import last_kept, masked_sum, require_same_shape
from equilibrate.types import combined

Source = Literal["reward", "cost", "both", "critics"]


@torch.no_grad()
def token_signal(
    source: Source,
    *,
    delta: bool,
    token_rewards: Tensor,
    token_costs: Tensor,
    values: Tensor,
    cost_values: Tensor,
    multiplier: float,
    response_mask: Tensor,
) -> Tensor:
    """Signal r_t of every token, from the scores of the prefixes that end at it.

        reward: R_t     cost: -C_t     both: (R_t - lambda C_t) / (1 + lambda)
        critics: (V - lambda V_C) / (1 + lambda) of the same prefix; at the last response token,
                 which no critic value follows, the models' own verdict, i.e. `both`

    With `delta`, r_t becomes r_t - r_(t-1): a prefix score is a prediction, its step is the credit
    of one token. Before the first response token stands the score of the last prompt token; before
    a token after a hole of the mask that of the hole, so that foreign tokens earn nobody credit.

    Args:
        token_rewards, token_costs: [B, T], score of the prefix that ends at each token, prompt too.
        values, cost_values: [B, T], critic value of the prefix that ends just *before* each token.
        multiplier: lambda >= 0.
        response_mask: [B, T] bool.
    Returns: [B, T], 0 outside the response, no gradient.
    Raises: ValueError if shapes differ.
    Source: Equilibrate RLHF (arXiv 2502.11555) masks by token reward or critic value; steps as in
        the pivot tokens of arXiv 2411.00809.
    """
    require_same_shape(
        token_rewards=token_rewards,
        token_costs=token_costs,
        values=values,
        cost_values=cost_values,
        response_mask=response_mask,
    )
    scores = _combine(
        "both" if source == "critics" else source, token_rewards, token_costs, multiplier
    )
    if source == "critics":
        critic = _combine("both", values, cost_values, multiplier)
        scores = torch.where(last_kept(response_mask), scores, critic.roll(-1, dims=1))
    signal = steps(scores) if delta else scores
    return torch.where(response_mask, signal, 0.0)


def response_signal(source: Source, *, reward: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    """[B], the same signal for the finished response; its sign is AMA's side `sequence`."""
    require_same_shape(reward=reward, cost=cost)
    return _combine("both" if source == "critics" else source, reward, cost, multiplier)


def steps(scores: Tensor) -> Tensor:
    """[B, T], scores_t - scores_(t-1), 0 in the first column."""
    return torch.nn.functional.pad(scores.diff(dim=1), (1, 0))


def _combine(
    source: Literal["reward", "cost", "both"], reward: Tensor, cost: Tensor, multiplier: float
) -> Tensor:
    if source == "reward":
        return reward
    if source == "cost":
        return -cost
    return combined(reward, cost, multiplier)


def constant(signal: Tensor, value: float) -> Tensor:
    """[1, 1]; 0 fits a signal whose zero means something: steps, or a cost."""
    return signal.new_full((1, 1), value)


def baseline_sums(signal: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count of the kept entries, float64: add them over ranks, then call `batch_mean`.

    float64, so that the mean, and with it the mask, does not depend on how the batch is sharded.
    """
    require_same_shape(signal=signal, mask=mask)
    return masked_sum(signal.double(), mask), mask.sum().double()


def batch_mean(total: Tensor, count: Tensor, like: Tensor) -> Tensor:
    """[1, 1], mean over the tokens of all ranks, in the dtype of `like`; 0 if there are none.

    Source: the per-batch baseline of Equilibrate RLHF's predecessor (OpenReview 6YdCMtRMuj).
    """
    return (total / count.clamp(min=1)).to(like).reshape(1, 1)


def sequence_mean(signal: Tensor, response_mask: Tensor) -> Tensor:
    """[B, 1], mean over each response; 0 for an empty one."""
    require_same_shape(signal=signal, response_mask=response_mask)
    total = torch.where(response_mask, signal, 0.0).sum(1, keepdim=True)
    return total / response_mask.sum(1, keepdim=True).clamp(min=1)
