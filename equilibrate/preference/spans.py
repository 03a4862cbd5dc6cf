"""Where two responses to one prompt are compared: right-padded rows, masks True on real tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from equilibrate.tensors import require_same_shape


def end_scores(scores: Tensor, attention_mask: Tensor) -> Tensor:
    """[B], the score at the last real token of each row: the verdict on what it says."""
    require_same_shape(scores=scores, attention_mask=attention_mask)
    return scores.gather(1, _end(attention_mask)).squeeze(1)


def hold_end_scores(scores: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, T], the scores with everything after the last real token replaced by the score there.

    The shorter response of a pair has no token where the longer one goes on; its verdict stands.
    """
    require_same_shape(scores=scores, attention_mask=attention_mask)
    positions = torch.arange(scores.shape[1], device=scores.device)[None]
    return scores.gather(1, torch.minimum(positions, _end(attention_mask)))


def comparison_span(
    first_ids: Tensor, second_ids: Tensor, first_mask: Tensor, second_mask: Tensor
) -> Tensor:
    """From the first token where the two rows differ to the later of their ends, both included.

    Args: ids [B, T] int64, attention masks [B, T] bool; padding ids do not matter.
    Returns: [B, T] bool; empty for a pair of identical rows.
    Source: token-wise losses of PKU-Alignment/safe-rlhf.
    """
    require_same_shape(
        first_ids=first_ids, second_ids=second_ids, first_mask=first_mask, second_mask=second_mask
    )
    either = first_mask | second_mask
    differs = either & ((first_ids != second_ids) | (first_mask != second_mask))
    return either & (differs.cumsum(1) > 0)


def _end(attention_mask: Tensor) -> Tensor:
    return attention_mask.sum(1, keepdim=True).sub(1).clamp(min=0)
