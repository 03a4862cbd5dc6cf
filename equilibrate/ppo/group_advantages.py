"""Advantages without a critic: a response is judged against others, not against a value.

Each estimator works on one signal, reward or cost; `combine_advantages` joins the two as it does
for `gae`. The KL penalty is in the signal (`shape_rewards`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from equilibrate.ppo.masks import keep
from equilibrate.tensors import require_same_shape

EPSILON = 1e-6
"""Keeps a division by a spread finite; in units of the signal."""


@torch.no_grad()
def rloo(rewards: Tensor, response_mask: Tensor, groups: Tensor) -> Tensor:
    """The return of a response less the mean return of the others of its group.

        A_i = R_i - sum_(j != i) R_j / (n - 1),   R_i = sum_t r_(i,t)

    Args:
        rewards: [B, T], one unit. Entries outside the response may hold anything.
        response_mask: [B, T] bool.
        groups: [B] int64, the same number for all responses to one prompt.
    Returns: [B, T], A_i at every response token, 0 elsewhere; 0 for a response that is alone.
    Raises: ValueError if shapes differ.
    Source: Ahmadian et al. 2024, eq. 7.
    """
    returns = _returns(rewards, response_mask, groups)
    mean, _, size = _group_statistics(returns, groups)
    return _spread((returns - mean) * size / (size - 1.0).clamp(min=1.0), response_mask)


@torch.no_grad()
def grpo(rewards: Tensor, response_mask: Tensor, groups: Tensor) -> Tensor:
    """The return of a response in standard deviations from the mean of its group.

        A_i = (R_i - mean_j R_j) / (std_j R_j + EPSILON)

    with the standard deviation of the group itself (divided by n). A group whose responses are
    equally good gives 0. Arguments, errors and shape of the result as in `rloo`.

    Source: Shao et al. 2024, section 4.1.2 (outcome supervision).
    """
    returns = _returns(rewards, response_mask, groups)
    mean, variance, _ = _group_statistics(returns, groups)
    return _spread((returns - mean) / (variance.sqrt() + EPSILON), response_mask)


@torch.no_grad()
def reinforce_plus_plus(rewards: Tensor, response_mask: Tensor) -> Tensor:
    """The return from each token on, in standard deviations from the mean of the whole batch.

        A_t = (G_t - mean G) / (std G + EPSILON),   G_t = sum_(s >= t) r_s

    Mean and standard deviation (divided by n) are over all response tokens of the batch, so one
    response per prompt is enough.

    Args: as in `rloo`.
    Returns: [B, T], 0 outside the response.
    Raises: ValueError if shapes differ.
    Source: Hu 2025 (arXiv 2501.03262), section 3.
    """
    require_same_shape(rewards=rewards, response_mask=response_mask)
    (kept,) = keep(response_mask, rewards)
    to_go = kept.flip(1).cumsum(1).flip(1)
    tokens = to_go[response_mask]
    if not len(tokens):
        return torch.zeros_like(to_go)
    scaled = (to_go - tokens.mean()) / (tokens.std(correction=0) + EPSILON)
    return torch.where(response_mask, scaled, 0.0)


def _returns(rewards: Tensor, response_mask: Tensor, groups: Tensor) -> Tensor:
    require_same_shape(rewards=rewards, response_mask=response_mask)
    require_same_shape(groups=groups, rows=response_mask.any(1))
    (kept,) = keep(response_mask, rewards)
    return kept.sum(1)


def _group_statistics(returns: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and size of each row's own group; [B] each."""
    _, index = torch.unique(groups, return_inverse=True)
    zeros = returns.new_zeros(len(returns))
    size = zeros.index_add(0, index, torch.ones_like(returns))[index]
    mean = zeros.index_add(0, index, returns)[index] / size
    # From differences, not from squares: equal returns give exactly 0.
    variance = zeros.index_add(0, index, (returns - mean) ** 2)[index] / size
    return mean, variance, size


def _spread(advantages: Tensor, response_mask: Tensor) -> Tensor:
    return torch.where(response_mask, advantages[:, None], 0.0)
