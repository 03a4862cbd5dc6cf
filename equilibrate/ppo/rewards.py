"""From one score per response to one number per token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from equilibrate.ppo.masks import keep
from equilibrate.tensors import last_kept, require_same_shape


def shape_rewards(
    score: Tensor,
    kl: Tensor,
    response_mask: Tensor,
    *,
    kl_coef: float,
    sign: Literal[1, -1],
    clip: float,
) -> Tensor:
    """Score at the last response token, KL penalty at all of them, clamped to +-clip.

        out_t = clamp(1[t is the last response token] * score - sign * kl_coef * kl_t, -clip, clip)

    The opposite signs for reward and cost keep the strength of the penalty at exactly kl_coef in
    (A_R - lambda A_C) / (1 + lambda), for every lambda.

    Args:
        score: [B], reward or cost of the finished response.
        kl: [B, T], nats, from `kl_penalty`.
        response_mask: [B, T] bool. A row without a response gives zeros.
        sign: +1 for a reward (KL lowers it), -1 for a cost (KL raises it).
        clip: > 0, score units (Safe RLHF uses 50).
    Returns: [B, T], 0 outside the response.
    Raises: ValueError if the shapes do not belong together.
    Source: Dai et al. 2023, appendix B; PKU-Alignment/safe-rlhf.
    """
    require_same_shape(kl=kl, response_mask=response_mask)
    require_same_shape(score=score, rows=response_mask.any(1))
    end_score = torch.where(last_kept(response_mask), score[:, None], 0.0)
    (shaped,) = keep(response_mask, end_score - sign * kl_coef * kl)
    return shaped.clamp(-clip, clip)
