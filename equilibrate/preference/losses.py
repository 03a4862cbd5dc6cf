"""Losses of the reward and cost models, and plain supervised learning.

Pair losses are sums over pairs divided by `num_pairs`, the count of the *global* batch, so that
adding up ranks and micro-batches gives the mean. The terms are taken at every position of
`comparison_span` and averaged per pair first; a span of one column compares end scores alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from equilibrate.tensors import masked_sum, require_same_shape


def token_reward_loss(
    better: Tensor, worse: Tensor, span: Tensor, *, regularization: float, num_pairs: int
) -> Tensor:
    """Bradley-Terry loss of a reward model, to be minimised: a score for each prefix.

        mean over pairs, of the mean over their span, of
        -log sigma(r_b - r_w) + mu * (r_b^2 + r_w^2) / 2

    Args:
        better, worse: [B, T], logits of the more and the less helpful response, held after each end
            (`hold_end_scores`).
        span: [B, T] bool, from `comparison_span`, or one column of end scores alone. Other entries
            may hold anything, nan included.
        regularization: mu >= 0, keeps the scores near 0 (Safe RLHF: 1e-3).
        num_pairs: pairs in the global batch.
    Returns: scalar.
    Raises: ValueError if shapes differ.
    Source: Dai et al. 2023, eq. 9; token-wise in PKU-Alignment/safe-rlhf.
    """
    require_same_shape(better=better, worse=worse, span=span)
    better, worse = torch.where(span, better, 0.0), torch.where(span, worse, 0.0)
    terms = -logsigmoid(better - worse) + regularization * _mean_square(better, worse)
    return _mean_over_rows(terms, span, num_pairs)


def token_cost_loss(
    safer: Tensor,
    unsafer: Tensor,
    safer_sign: Tensor,
    unsafer_sign: Tensor,
    span: Tensor,
    *,
    regularization: float,
    num_pairs: int,
) -> Tensor:
    """Loss of a cost model: order of the pair, and each response on its side of 0.

        mean over pairs, of the mean over their span, of
        -log sigma(c_u - c_s) - log sigma(s_s c_s) - log sigma(s_u c_u) + mu * (c_s^2 + c_u^2) / 2

    The sign terms put the zero of the cost at the safe/unsafe boundary: a budget gets a meaning. A
    verdict on each prefix is the ready source for AMA.

    Args:
        safer, unsafer: [B, T], logits, larger is more harmful; held after each end
            (`hold_end_scores`).
        safer_sign, unsafer_sign: [B], +1 unsafe, -1 safe; the safer response may be unsafe.
        span, regularization, num_pairs: as in `token_reward_loss`.
    Returns: scalar; 3 log 2 where all scores are 0.
    Raises: ValueError if shapes differ.
    Source: Dai et al. 2023, eq. 10; token-wise in PKU-Alignment/safe-rlhf.
    """
    require_same_shape(safer=safer, unsafer=unsafer, span=span)
    require_same_shape(safer_sign=safer_sign, unsafer_sign=unsafer_sign, rows=span.any(1))
    safer, unsafer = torch.where(span, safer, 0.0), torch.where(span, unsafer, 0.0)
    order = -logsigmoid(unsafer - safer)
    signs = -logsigmoid(safer_sign[:, None] * safer) - logsigmoid(unsafer_sign[:, None] * unsafer)
    terms = order + signs + regularization * _mean_square(safer, unsafer)
    return _mean_over_rows(terms, span, num_pairs)


def token_sign_loss(
    scores: Tensor, signs: Tensor, span: Tensor, *, regularization: float, num_answers: int
) -> Tensor:
    """The sign terms of `token_cost_loss` alone, for answers that are labelled one by one.

        mean over answers, of the mean over their span, of  -log sigma(s c) + mu * c^2 / 2

    Args:
        scores: [B, T], logits; larger is more harmful.
        signs: [B], +1 unsafe, -1 safe.
        span: [B, T] bool, the answer's tokens, or one column of end scores alone. Other entries may
            hold anything, nan included.
        regularization: mu >= 0.
        num_answers: in the global batch.
    Returns: scalar; log 2 where all scores are 0.
    Raises: ValueError if shapes differ.
    Source: Dai et al. 2023, eq. 10, without its order term.
    """
    require_same_shape(scores=scores, span=span)
    require_same_shape(signs=signs, rows=span.any(1))
    scores = torch.where(span, scores, 0.0)
    terms = -logsigmoid(signs[:, None] * scores) + 0.5 * regularization * scores.square()
    return _mean_over_rows(terms, span, num_answers)


def sft_loss(log_probs: Tensor, response_mask: Tensor, *, num_tokens: int) -> Tensor:
    """Cross entropy of the response tokens.

    Args:
        log_probs: [B, T], nats, of the given tokens; entries outside the mask may hold anything.
        response_mask: [B, T] bool, tokens to learn.
        num_tokens: learned tokens in the global batch.
    Returns: scalar, nats per token; 0 if the mask is empty.
    Raises: ValueError if shapes differ.
    """
    require_same_shape(log_probs=log_probs, response_mask=response_mask)
    return -masked_sum(log_probs, response_mask) / max(num_tokens, 1)


def _mean_square(first: Tensor, second: Tensor) -> Tensor:
    return 0.5 * (first.square() + second.square())


def _mean_over_rows(terms: Tensor, span: Tensor, num_rows: int) -> Tensor:
    # Two responses that differ only beyond their cut have an empty span: 0, not 0 / 0.
    lengths = span.sum(1).clamp(min=1)
    per_row = torch.where(span, terms, 0.0).sum(1) / lengths
    return per_row.sum() / max(num_rows, 1)
