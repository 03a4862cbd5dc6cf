"""Where responses begin and end, read from the mask and never from lengths."""

from __future__ import annotations

import torch
from torch import Tensor


def last_kept(mask: Tensor) -> Tensor:
    """One-hot mask of the last True of each row; a row without True stays empty.

    Args: mask: [B, T] bool.
    Returns: [B, T] bool.
    """
    kept_from_here = mask.flip(1).cumsum(1).flip(1)
    return mask & (kept_from_here == 1)


def keep(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with 0 wherever the mask drops: do it before any exp or product."""
    return tuple(torch.where(mask, tensor, 0.0) for tensor in tensors)
