"""The losses of one optimiser step, and the sums that its metrics are made of.

Every loss is a sum over kept tokens divided by `num_tokens`, the count of the *global* minibatch,
so that adding up ranks and micro-batches gives the mean. Where a mean of each sequence is wanted
first, and then one over sequences, it is a count for each row, from `tokens_by_sequence`. Entries
that the mask drops may hold anything, nan included; an empty mask gives 0 with zero gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from equilibrate.ppo.ratios import log_ratios
from equilibrate.tensors import keep, masked_sum, require_same_shape


def clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    gradient_mask: Tensor,
    *,
    clip_range: float,
    num_tokens: int | Tensor,
) -> Tensor:
    """Clipped surrogate policy loss, to be minimised.

        mean over kept tokens of  -min(ratio * A, clip(ratio, 1 - c, 1 + c) * A)
        ratio = exp(log_probs - old_log_probs), see `log_ratios`

    Args:
        log_probs, old_log_probs: [B, T], nats, policy now and at the start of the update.
        advantages: [B, T], reward units; constants, larger is better.
        gradient_mask: [B, T] bool, True where the token may move the policy.
        clip_range: c > 0, dimensionless.
        num_tokens: kept tokens in the global minibatch; or [B], see above.
    Returns: scalar.
    Raises: ValueError if shapes differ.
    Source: Schulman et al. 2017, eq. 7.
    """
    require_same_shape(
        log_probs=log_probs,
        old_log_probs=old_log_probs,
        advantages=advantages,
        gradient_mask=gradient_mask,
    )
    ratio = log_ratios(log_probs, old_log_probs, gradient_mask).exp()
    (advantages,) = keep(gradient_mask, advantages.detach())
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    return _mean(loss, gradient_mask, num_tokens)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    *,
    value_clip_range: float,
    num_tokens: int | Tensor,
) -> Tensor:
    """Squared error of a critic, pessimistic about moves larger than the clip range.

        mean over kept tokens of  0.5 * max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2)

    Args:
        values, old_values, returns: [B, T], one unit; the last two are constants.
        response_mask: [B, T] bool; a critic learns from every response token, masked by AMA or not.
        value_clip_range: c > 0, in units of the values (Safe RLHF uses 5).
        num_tokens: response tokens in the global minibatch; or [B], see above.
    Returns: scalar.
    Raises: ValueError if shapes differ.
    Source: Dai et al. 2023, appendix B; PKU-Alignment/safe-rlhf.
    """
    require_same_shape(
        values=values, old_values=old_values, returns=returns, response_mask=response_mask
    )
    values, old_values, returns = keep(response_mask, values, old_values.detach(), returns.detach())
    clipped = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
    loss = 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
    return _mean(loss, response_mask, num_tokens)


def ptx_loss(log_probs: Tensor, mask: Tensor, *, num_tokens: int) -> Tensor:
    """Cross entropy of pretraining tokens, mixed in so that the policy keeps its general ability.

    Args:
        log_probs: [B, T], nats, of the given tokens under the current policy.
        mask: [B, T] bool, tokens to learn (padding and the first token are not).
        num_tokens: learned tokens in the global batch.
    Returns: scalar, nats per token.
    Raises: ValueError if shapes differ.
    Source: Ouyang et al. 2022, eq. 2, third term.
    """
    require_same_shape(log_probs=log_probs, mask=mask)
    return -_mean(log_probs, mask, num_tokens)


class PolicySums(NamedTuple):
    """Sums over kept tokens; add them over micro-batches and ranks, then divide by their count."""

    clipped: Tensor
    """Tokens whose ratio left [1 - c, 1 + c]."""
    approx_kl: Tensor
    """KL(old || new), nats, by the non-negative estimate ratio - 1 - log ratio (Schulman 2020)."""


@torch.no_grad()
def policy_sums(
    log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, *, clip_range: float
) -> PolicySums:
    """What the metrics of a policy step are made of. Arguments as in `clipped_policy_loss`."""
    log_ratio = log_ratios(log_probs, old_log_probs, mask)
    ratio = log_ratio.exp()
    return PolicySums(
        clipped=((ratio - 1).abs() > clip_range).sum().to(ratio.dtype),
        approx_kl=(ratio - 1 - log_ratio).sum(),
    )


def tokens_by_sequence(row_tokens: Tensor, num_sequences: int) -> Tensor:
    """What to divide the sum of each row by, so that the result is a mean over sequences.

        mean over sequences of (mean over its kept tokens) = sum over rows of sum_i / (n_i * N)

    A sequence of which nothing is kept counts among the N, as a mean of 0.

    Args:
        row_tokens: [B], n_i, kept tokens of each row.
        num_sequences: N, of the global minibatch.
    Returns: [B], at least 1.
    Source: the losses of PKU-Alignment/safe-rlhf and of Equilibrate RLHF's APPO.
    """
    return row_tokens.clamp(min=1) * max(num_sequences, 1)


def _mean(terms: Tensor, mask: Tensor, num_tokens: int | Tensor) -> Tensor:
    # Nothing kept anywhere: the sum is 0 and must stay 0.
    if isinstance(num_tokens, int):
        return masked_sum(terms, mask) / max(num_tokens, 1)
    return (torch.where(mask, terms, 0.0).sum(1) / num_tokens).sum()
