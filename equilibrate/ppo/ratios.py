"""How much likelier a token became, in a form that may be put into exp."""

from __future__ import annotations

from torch import Tensor

from equilibrate.ppo.masks import keep
from equilibrate.tensors import require_same_shape

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
