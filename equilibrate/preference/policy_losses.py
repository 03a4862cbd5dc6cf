"""Losses of a policy that learns from labelled answers, not from its own rollouts.

As in `preference.losses`, sums are divided by counts of the *global* batch, so that adding up ranks
and micro-batches gives the mean.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from equilibrate.tensors import masked_sum, require_same_shape

MaskMode = Literal["gradient", "forward"]
_SMALLEST_DOUBT = 1e-6
"""1 - p is held above it in `unlikelihood_loss`: a token of probability 1 has no finite loss."""


def masked_log_ratios(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    response_mask: Tensor,
    gradient_mask: Tensor,
    *,
    mode: MaskMode,
) -> Tensor:
    """How much likelier each answer became: sums of D_t = log pi - log pi_ref over its tokens.

        forward:   S = sum of kept D_t
        gradient:  S = sum of kept D_t + sum of the other D_t as constants

    `gradient` has the value of no mask at all and the gradient of the kept tokens only.

    Args:
        log_probs, ref_log_probs: [B, T], nats; entries outside the response may hold anything.
        response_mask: [B, T] bool.
        gradient_mask: [B, T] bool, a subset of it.
    Returns: [B], nats.
    Raises: ValueError if shapes differ.
    Source: ADPO of Equilibrate RLHF (arXiv 2502.11555); its code is `forward`, its text `gradient`.
    """
    require_same_shape(
        log_probs=log_probs,
        ref_log_probs=ref_log_probs,
        response_mask=response_mask,
        gradient_mask=gradient_mask,
    )
    ratios = torch.where(response_mask, log_probs - ref_log_probs, 0.0)
    masked = ratios.detach() if mode == "gradient" else torch.zeros_like(ratios)
    return torch.where(gradient_mask, ratios, masked).sum(1)


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, num_pairs: int) -> Tensor:
    """Direct preference optimisation.

        mean over pairs of  -log sigma(beta * (S_w - S_l))

    Args:
        chosen, rejected: [P], S_w and S_l of `masked_log_ratios`, nats.
        beta: > 0, strength of the pull to the reference.
        num_pairs: pairs in the global batch.
    Returns: scalar; log 2 where policy and reference agree.
    Raises: ValueError if shapes differ.
    Source: Rafailov et al. 2023, eq. 7.
    """
    require_same_shape(chosen=chosen, rejected=rejected)
    return -logsigmoid(beta * (chosen - rejected)).sum() / max(num_pairs, 1)


def unlikelihood_loss(log_probs: Tensor, mask: Tensor, *, num_tokens: int) -> Tensor:
    """Pushes tokens down: mean over the mask of -log(1 - p).

    Bounded below, unlike the negative of a cross entropy, and flat once a token is unlikely.

    Args:
        log_probs: [B, T], nats; entries outside the mask may hold anything.
        mask: [B, T] bool, tokens to unlearn.
        num_tokens: such tokens in the global batch.
    Returns: scalar, nats per token; 0 if the mask is empty.
    Raises: ValueError if shapes differ.
    Source: Welleck et al. 2019, eq. 3.
    """
    require_same_shape(log_probs=log_probs, mask=mask)
    # Mask first: the log of a probability of 1 is inf, and where() would pass nan to the gradient.
    doubts = -torch.expm1(torch.where(mask, log_probs, -1.0))
    return -masked_sum(doubts.clamp(min=_SMALLEST_DOUBT).log(), mask) / max(num_tokens, 1)


def bfpo_labels(
    is_better_safe: Tensor, is_worse_safe: Tensor, *, safety_weight: float, shift: float
) -> Tensor:
    """How far the more helpful answer of each pair is to be ahead.

        g = b1 b3 I(better) - b3 I(worse) - alpha,   b3 = 1 / (b1 - 1)

    With b1 = 3 and alpha = 1/2: +1/2 if both are safe, +1 if only the more helpful one is, -1 if
    only the other one is, -1/2 if none is. So safe and helpful stands above safe, and harmful and
    helpful below harmful.

    Args:
        is_better_safe, is_worse_safe: [P] bool; better is the more helpful one.
        safety_weight: b1 > 1.
        shift: alpha.
    Returns: [P].
    Raises: ValueError if shapes differ.
    Source: Zhang et al. 2024 (arXiv 2408.15313), the label of its supervised form.
    """
    require_same_shape(is_better_safe=is_better_safe, is_worse_safe=is_worse_safe)
    scale = 1.0 / (safety_weight - 1.0)
    better, worse = is_better_safe.float(), is_worse_safe.float()
    return safety_weight * scale * better - scale * worse - shift


def bfpo_loss(
    better: Tensor, worse: Tensor, labels: Tensor, *, tau: float, num_pairs: int
) -> Tensor:
    """Fits the lead of the more helpful answer to its label.

        mean over pairs of  (S_better - S_worse - g / tau)^2

    Args:
        better, worse: [P], of `masked_log_ratios`, nats.
        labels: [P], g of `bfpo_labels`.
        tau: > 0, strength of the pull to the reference.
        num_pairs: pairs in the global batch.
    Returns: scalar; for two safe answers that of IPO with the target 1 / (2 tau).
    Raises: ValueError if shapes differ.
    Source: Zhang et al. 2024 (arXiv 2408.15313).
    """
    require_same_shape(better=better, worse=worse, labels=labels)
    return (better - worse - labels / tau).square().sum() / max(num_pairs, 1)
