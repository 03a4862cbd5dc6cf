"""How much likelier a token became, in a form that may be put into exp; importance weights."""

from __future__ import annotations

from torch import Tensor

from equilibrate.tensors import keep, require_same_shape

LOG_RATIO_LIMIT = 20.0
"""Nats. Above 88.7 exp overflows in float32 and the gradient is nan; a ratio of e^20 is broken long
before. verl clamps at the same size."""


def log_ratios(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """log_probs - old_log_probs, cut to +-`LOG_RATIO_LIMIT`, beyond which there is no gradient.

    Args: all [B, T]; log-probs in nats; mask bool, other entries may hold anything, nan included.
    Returns: [B, T], nats, 0 outside the mask.
    Raises: ValueError if shapes differ.
    """
    require_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    # Mask first: exp of an outlier is inf, and a later where() would still give a nan gradient.
    (differences,) = keep(mask, log_probs - old_log_probs)
    return differences.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def truncated_importance(
    old_log_probs: Tensor, rollout_log_probs: Tensor, response_mask: Tensor, *, cap: float
) -> Tensor:
    """Weight of each token: how much likelier it is now than when it was sampled, at most `cap`.

        w_t = min(exp(old_log_probs_t - rollout_log_probs_t), cap)

    PPO's ratio stays that of new to old policy; the weight corrects for old against sampling one.

    Args:
        old_log_probs: [B, T], nats, under the policy before the update.
        rollout_log_probs: [B, T], nats, under the policy that sampled.
        response_mask: [B, T] bool.
        cap: >= 1; bounds the variance, at the price of a bias.
    Returns: [B, T] in [0, cap], 1 outside the response; no gradient flows through it.
    Source: Hilton et al. 2021 (arXiv 2110.00641), the decoupled objective; truncation as in
        Espeholt et al. 2018 (arXiv 1802.01561), eq. 1.
    """
    differences = log_ratios(old_log_probs, rollout_log_probs, response_mask)
    return differences.detach().exp().clamp(max=cap)
