"""Cutting a response at its pivots: tokens where the signal jumps by more than kappa.

Source: arXiv 2411.00809 cuts at pivots; its criterion was not readable, these rules are ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from equilibrate.tensors import require_same_shape

PivotRule = Literal["std", "quantile", "const"]


def pivot_threshold(rule: PivotRule, value: float, jumps: Tensor, response_mask: Tensor) -> Tensor:
    """kappa of each response.

    Args:
        rule: std: mean + value * (population) standard deviation of the jumps of that response;
            quantile: their value-quantile; const: value itself.
        jumps: [B, T], >= 0.
    Returns: [B, 1]; 0 or nan for an empty response, which has no token to cut.
    """
    require_same_shape(jumps=jumps, response_mask=response_mask)
    if rule == "const":
        return jumps.new_full((len(jumps), 1), value)
    if rule == "quantile":
        return torch.where(response_mask, jumps, torch.nan).nanquantile(value, 1, keepdim=True)
    count = response_mask.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(response_mask, jumps, 0.0).sum(1, keepdim=True) / count
    squares = torch.where(response_mask, (jumps - mean).square(), 0.0)
    return mean + value * (squares.sum(1, keepdim=True) / count).sqrt()


def segment_ids(jumps: Tensor, response_mask: Tensor, threshold: Tensor) -> Tensor:
    """Number of each token's segment; a pivot (jump > threshold) starts a new one.

    threshold = -inf gives every token its own segment, +inf one segment per response.

    Args: jumps [B, T]; threshold [B, 1].
    Returns: [B, T] int64, >= 0, non-decreasing along the row; a hole of the mask does not cut.
    """
    require_same_shape(jumps=jumps, response_mask=response_mask)
    return (response_mask & (jumps > threshold)).cumsum(1)


def segment_means(signal: Tensor, response_mask: Tensor, ids: Tensor) -> Tensor:
    """[B, T], mean of the signal over each token's segment; 0 outside the response."""
    require_same_shape(signal=signal, response_mask=response_mask, ids=ids)
    width = signal.shape[1] + 1  # ids run from 0 to T
    kept = torch.where(response_mask, signal, 0.0)
    totals = signal.new_zeros(len(signal), width).scatter_add(1, ids, kept)
    counts = signal.new_zeros(len(signal), width).scatter_add(1, ids, response_mask.to(signal))
    means = totals / counts.clamp(min=1)
    return torch.where(response_mask, means.gather(1, ids), 0.0)
