"""Advantages without a critic: a response is judged against others, not against a value.

Each estimator works on one signal, reward or cost; `combine_advantages` joins the two as it does
for `gae`. Where a signal is divided by its standard deviation, lambda weighs standard deviations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equilibrate.ppo.advantages import gae
from equilibrate.ppo.masks import keep
from equilibrate.tensors import require_same_shape

EPSILON = 1e-4
"""Added to a standard deviation, in units of the signal: above what rounding leaves."""


@torch.no_grad()
def rloo(rewards: Tensor, response_mask: Tensor, groups: Tensor) -> Tensor:
    """The return of a response less the mean return of the others of its group.

        A_i = R_i - sum_(j != i) R_j / (n - 1),   R_i = sum_t r_(i,t)

    Args:
        rewards: [B, T], one unit, with the KL penalty. Entries outside the response may hold
            anything.
        response_mask: [B, T] bool.
        groups: [B] int64, the same number for all responses to one prompt.
    Returns: [B, T], A_i at every response token, 0 elsewhere; 0 for a response that is alone.
    Raises: ValueError if shapes differ.
    Source: Ahmadian et al. 2024, eq. 7.
    """
    require_same_shape(rewards=rewards, response_mask=response_mask)
    require_same_shape(groups=groups, rows=response_mask.any(1))
    (kept,) = keep(response_mask, rewards)
    returns = kept.sum(1)
    mean, _, size = _group_statistics(returns, groups)
    return _at_every_token((returns - mean) * size / (size - 1.0).clamp(min=1.0), response_mask)


@torch.no_grad()
def grpo(scores: Tensor, response_mask: Tensor, groups: Tensor) -> Tensor:
    """The score of a response in standard deviations from the mean of its group.

        A_i = (s_i - mean_j s_j) / (std_j s_j + EPSILON)

    with the standard deviation of the group itself (divided by n). The KL penalty stays out, or a
    group of equal scores would be told apart by it alone, at full strength.

    Args:
        scores: [B], one unit.
        response_mask, groups: as in `rloo`.
    Returns: [B, T], A_i at every response token, 0 elsewhere.
    Raises: ValueError if shapes differ.
    Source: Shao et al. 2024, section 4.1.2 (outcome supervision).
    """
    require_same_shape(scores=scores, groups=groups, rows=response_mask.any(1))
    mean, variance, _ = _group_statistics(scores, groups)
    return _at_every_token((scores - mean) / (variance.sqrt() + EPSILON), response_mask)


@torch.no_grad()
def reinforce_plus_plus(rewards: Tensor, response_mask: Tensor, *, gamma: float) -> Tensor:
    """The return from each token on, in standard deviations from the mean of the whole batch.

        A_t = (G_t - mean G) / (std G + EPSILON),   G_t = sum_(s >= t) gamma^(s - t) r_s

    Mean and standard deviation (divided by n) are over all response tokens of the batch, so one
    response per prompt is enough. The KL penalty in the rewards is divided with them.

    Args: as in `rloo`; gamma in [0, 1].
    Returns: [B, T], 0 outside the response.
    Raises: ValueError if shapes differ.
    Source: Hu 2025 (arXiv 2501.03262), section 3.
    """
    to_go, _ = gae(rewards, torch.zeros_like(rewards), response_mask, gamma=gamma, gae_lambda=1.0)
    tokens = to_go[response_mask]
    if not len(tokens):
        return torch.zeros_like(to_go)
    scaled = (to_go - tokens.mean()) / (tokens.std(correction=0) + EPSILON)
    return torch.where(response_mask, scaled, 0.0)


def _group_statistics(returns: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and size of each row's own group; [B] each."""
    _, index = torch.unique(groups, return_inverse=True)
    zeros = returns.new_zeros(len(returns))
    size = zeros.index_add(0, index, torch.ones_like(returns))[index]
    mean = zeros.index_add(0, index, returns)[index] / size
    # From differences: from squares, rounding would leave more of equal ones.
    variance = zeros.index_add(0, index, (returns - mean) ** 2)[index] / size
    return mean, variance, size


def _at_every_token(advantages: Tensor, response_mask: Tensor) -> Tensor:
    return torch.where(response_mask, advantages[:, None], 0.0)
