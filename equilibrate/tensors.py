"""The checks, sums and ends that every pure function on [B, T] tensors needs."""

from __future__ import annotations

import torch
from torch import Tensor


def require_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError, naming every shape, unless all tensors have one shape."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes must be equal, got {shapes}")


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of the kept entries. Dropped entries may hold anything, nan included."""
    return torch.where(mask, values, 0.0).sum()


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
