"""Advantages without a critic: a response is judged against others, not against a value.

Each estimator works on one signal, reward or cost; `types.combined` joins the two as it does
for `gae`. Where a signal is divided by its standard deviation, lambda weighs standard deviations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equilibrate.ppo.advantages import gae
from equilibrate.tensors import keep, require_same_shape

EPSILON = 1e-4
"""Added to a standard deviation, in units of the signal: below it, differences are noise."""


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
    centred, size, _ = _centred(returns, groups)
    advantages = centred * size / (size - 1.0).clamp(min=1.0)
    return _at_every_token(advantages.to(rewards.dtype), response_mask)


@torch.no_grad()
def grpo(scores: Tensor, response_mask: Tensor, groups: Tensor) -> Tensor:
    """The score of a response in standard deviations from the mean of its group.

        A_i = (s_i - mean_j s_j) / (std_j s_j + EPSILON)

    with the standard deviation of a sample (divided by n - 1), as in TRL and verl. The KL penalty
    stays out, or a group of equal scores would be told apart by it alone, at full strength.

    Args:
        scores: [B], one unit.
        response_mask, groups: as in `rloo`.
    Returns: [B, T], A_i at every response token, 0 elsewhere; 0 for equal scores of any size and
        for a response that is alone.
    Raises: ValueError if shapes differ.
    Source: Shao et al. 2024, section 4.1.2 (outcome supervision).
    """
    require_same_shape(scores=scores, groups=groups, rows=response_mask.any(1))
    centred, size, index = _centred(scores, groups)
    squares = _group_sum(centred.square(), index)
    deviation = (squares / (size - 1.0).clamp(min=1.0)).sqrt()
    return _at_every_token((centred / (deviation + EPSILON)).to(scores.dtype), response_mask)


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
    centred, _, _ = _centred(tokens, torch.zeros_like(tokens, dtype=torch.int64))
    scaled = centred / (centred.square().mean().sqrt() + EPSILON)
    return torch.zeros_like(to_go).masked_scatter(response_mask, scaled.to(to_go.dtype))


def _centred(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each value less the mean of its group, and the size and index of that group; [B] each.

    In float64, and measured from the largest of the group first: so equal values of any size give
    exactly 0, where the rounding of a mean would be divided by a deviation that is rounding too.
    """
    _, index = torch.unique(groups, return_inverse=True)
    values = values.double()
    largest = torch.zeros_like(values).scatter_reduce(0, index, values, "amax", include_self=False)
    below = values - largest[index]
    size = _group_sum(torch.ones_like(values), index)
    return below - _group_sum(below, index) / size, size, index


def _group_sum(values: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(values).index_add(0, index, values)[index]


def _at_every_token(advantages: Tensor, response_mask: Tensor) -> Tensor:
    return torch.where(response_mask, advantages[:, None], 0.0)
