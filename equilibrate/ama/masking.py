"""AMA's gradient mask by its settings: the one place that reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from equilibrate.ama.masks import gradient_mask
from equilibrate.ama.signals import (
    baseline_sums,
    batch_mean,
    constant,
    sequence_mean,
    token_signal,
)
from equilibrate.config.base import MaskConfig


def kept_tokens(
    ama: MaskConfig,
    sides: Tensor,
    *,
    token_rewards: Tensor,
    token_costs: Tensor,
    values: Tensor,
    cost_values: Tensor,
    response_mask: Tensor,
    may_be_masked: Tensor,
    multiplier: float,
    dead_band: float = 0.0,
    control: torch.Generator | None = None,
    response_scores: Tensor | None = None,
) -> Tensor:
    """Which tokens of a whole batch may move the policy; shapes as in `gradient_mask`.

    Args:
        sides: [B, T], advantages, or +1 and -1 for answers that are to become likelier or less so.
        control: draws as many tokens at random instead.
    Returns: [B, T] bool.
    """
    signal = token_signal(
        ama.source,
        delta=ama.delta,
        token_rewards=token_rewards,
        token_costs=token_costs,
        values=values,
        cost_values=cost_values,
        multiplier=multiplier,
        response_mask=response_mask,
    )
    return gradient_mask(
        signal,
        sides,
        response_mask,
        may_be_masked,
        baseline=_baseline(signal, response_mask, ama),
        level=ama.level,
        delta=ama.delta,
        pivot_rule=ama.pivots.rule,
        pivot_value=ama.pivots.value,
        dead_band=dead_band,
        response_scores=response_scores,
        control=control,
    )


def _baseline(signal: Tensor, response_mask: Tensor, ama: MaskConfig) -> Tensor:
    match ama.baseline:
        case "zero":
            return constant(signal, 0.0)
        case "batch_mean":
            total, count = baseline_sums(signal, response_mask)
            return batch_mean(total, count, signal)
        case "sequence_mean":
            return sequence_mean(signal, response_mask)
        case value:
            return constant(signal, float(value))
