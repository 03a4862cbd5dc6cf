"""Masking before any arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor


def keep(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with 0 wherever the mask drops: do it before any exp or product."""
    return tuple(torch.where(mask, tensor, 0.0) for tensor in tensors)
