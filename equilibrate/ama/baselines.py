"""The level that a token signal is compared with; every result broadcasts to [B, T]."""

from __future__ import annotations

import torch
from torch import Tensor

from equilibrate.tensors import masked_sum, require_same_shape


def constant(signal: Tensor, value: float) -> Tensor:
    """[1, 1]; 0 fits a signal whose zero means something: steps, or a cost."""
    return signal.new_full((1, 1), value)


def baseline_sums(signal: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count of the kept entries, float64: add them over ranks, then call `batch_mean`.

    float64, so that the mean, and with it the mask, does not depend on how the batch is sharded.
    """
    require_same_shape(signal=signal, mask=mask)
    return masked_sum(signal.double(), mask), mask.sum().double()


def batch_mean(total: Tensor, count: Tensor, like: Tensor) -> Tensor:
    """[1, 1], mean over the tokens of all ranks, in the dtype of `like`; 0 if there are none.

    Source: the per-batch baseline of Equilibrate RLHF's predecessor (OpenReview 6YdCMtRMuj).
    """
    return (total / count.clamp(min=1)).to(like).reshape(1, 1)


def sequence_mean(signal: Tensor, response_mask: Tensor) -> Tensor:
    """[B, 1], mean over each response; 0 for an empty one."""
    require_same_shape(signal=signal, response_mask=response_mask)
    total = torch.where(response_mask, signal, 0.0).sum(1, keepdim=True)
    return total / response_mask.sum(1, keepdim=True).clamp(min=1)
