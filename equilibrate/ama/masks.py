"""Which response tokens may move the policy. Every mask here is a subset of the response mask."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from equilibrate.ama.segments import PivotRule, pivot_threshold, segment_ids, segment_means
from equilibrate.ama.signals import steps
from equilibrate.tensors import last_kept, require_same_shape

Level = Literal["token", "segment", "sequence"]


@torch.no_grad()
def gradient_mask(
    signal: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    may_be_masked: Tensor,
    *,
    baseline: Tensor,
    level: Level,
    delta: bool,
    pivot_rule: PivotRule = "std",
    pivot_value: float = 1.0,
    dead_band: float = 0.0,
    response_scores: Tensor | None = None,
    control: torch.Generator | None = None,
) -> Tensor:
    """The mask of the policy loss: keep a token if its signal agrees with the push it would get.

        keep_t = s_t * (r - b) > -dead_band,   r = r_t, or the mean of its segment or response

    Args:
        signal: [B, T], from `token_signal`.
        advantages: [B, T]; s_t is their sign, 0 counts as +1.
        response_mask: [B, T] bool; the result is a subset of it.
        may_be_masked: [B] bool; rows with False keep their whole response (the class gate).
        baseline: b, broadcastable to [B, T], from `ama.signals`.
        delta: whether the signal is made of steps, whose size then marks the pivots of `segment`.
        pivot_rule, pivot_value: kappa, see `pivot_threshold`; only `segment` reads them.
        dead_band: >= 0, how far a signal may be on the other side before its token is dropped.
        response_scores: [B] or None. If given, s is its sign for the whole row (side `sequence`):
            the score of the finished response minus its own baseline.
        control: if given, the tokens kept in the masked rows are drawn at random from it, exactly
            as many as the mask would keep: what AMA must beat.
    Returns: [B, T] bool, no gradient.
    Raises: ValueError if the shapes do not belong together.
    Source: Equilibrate RLHF (arXiv 2502.11555), its APPO mask; segments arXiv 2411.00809.
    """
    require_same_shape(signal=signal, advantages=advantages, response_mask=response_mask)
    require_same_shape(may_be_masked=may_be_masked, rows=response_mask.any(1))
    signal = _at_level(level, signal, response_mask, delta, pivot_rule, pivot_value)
    side = sign(advantages if response_scores is None else response_scores[:, None])
    maskable = response_mask & may_be_masked[:, None]
    kept = maskable & agrees(signal, side, baseline, dead_band=dead_band)
    if control is not None:
        kept = random_mask(maskable, int(kept.sum()), control)
    return kept | (response_mask & ~may_be_masked[:, None])


def _at_level(
    level: Level,
    signal: Tensor,
    response_mask: Tensor,
    delta: bool,
    pivot_rule: PivotRule,
    pivot_value: float,
) -> Tensor:
    """The signal of each token itself, or the mean of its segment or of its whole response."""
    if level == "segment":
        jumps = signal.abs() if delta else _jumps(signal, response_mask)
        threshold = pivot_threshold(pivot_rule, pivot_value, jumps, response_mask)
        return segment_means(signal, response_mask, segment_ids(jumps, response_mask, threshold))
    if level == "sequence":
        whole = torch.zeros_like(response_mask, dtype=torch.int64)
        return segment_means(signal, response_mask, whole)
    return signal


def agrees(signal: Tensor, side: Tensor, baseline: Tensor, *, dead_band: float = 0.0) -> Tensor:
    """side * (signal - baseline) > -dead_band, strictly: without a band the baseline is dropped."""
    return side * (signal - baseline) > -dead_band


def sign(values: Tensor) -> Tensor:
    """+1 for >= 0, -1 otherwise (nan counts as -1, where the mask drops it anyway)."""
    return torch.where(values >= 0, 1.0, -1.0)


def random_mask(maskable: Tensor, num_kept: int, generator: torch.Generator) -> Tensor:
    """`num_kept` of the True entries of `maskable` [B, T], drawn uniformly without replacement.

    Draws on the generator's device: one seed gives one mask, wherever the tensors are.
    """
    candidates = maskable.flatten().nonzero().squeeze(1)
    order = torch.randperm(len(candidates), generator=generator, device=generator.device)
    kept = torch.zeros_like(maskable.flatten())
    kept[candidates[order[:num_kept].to(candidates.device)]] = True
    return kept.view_as(maskable)


def full_where_empty(mask: Tensor, response_mask: Tensor) -> Tensor:
    """[B, T], rows of `mask` with no True replaced by the whole response: nothing is left out."""
    require_same_shape(mask=mask, response_mask=response_mask)
    return torch.where(mask.any(1, keepdim=True), mask, response_mask)


def keep_ends(mask: Tensor, response_mask: Tensor, rows: Tensor) -> Tensor:
    """[B, T], `mask` and, in the rows [B] that are True, the last response token.

    An answer that is to become likelier must be taught to end.
    """
    require_same_shape(mask=mask, response_mask=response_mask)
    return mask | (last_kept(response_mask) & rows[:, None])


def _jumps(signal: Tensor, response_mask: Tensor) -> Tensor:
    """|r_t - r_(t-1)| where both are response tokens; 0 where there is nothing to jump from."""
    follows = torch.nn.functional.pad(response_mask[:, :-1], (1, 0))
    return torch.where(response_mask & follows, steps(signal).abs(), 0.0)
