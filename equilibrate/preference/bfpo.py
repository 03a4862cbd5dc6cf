"""Bi-factorial preference optimisation: safety and helpfulness as one label of a pair."""

from __future__ import annotations

from torch import Tensor

from equilibrate.tensors import require_same_shape


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
