"""Log-probs and entropies of sampled tokens, aligned to the tokens themselves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad


def token_log_probs(logits: Tensor, token_ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-prob of each token given the tokens before it.

        out[:, t] = log softmax(logits[:, t - 1] / temperature)[token_ids[:, t]],  out[:, 0] = 0

    Args:
        logits: [B, T, V] of a causal model; `logits[:, t]` predicts token t + 1.
        token_ids: [B, T] int64.
        temperature: > 0; the one that sampled the tokens.
    Returns: [B, T], nats, float32 or wider whatever the dtype of the logits.
    Raises: ValueError if the shapes do not belong together.
    """
    _require_logits_of(token_ids, logits)
    # Fused, and on whole rows: slicing [B, T, V] first costs a copy forward and another backward.
    # The last position predicts nothing we know; rolled, its target is the first token: cut off.
    negative = cross_entropy(
        _wide(_tempered(logits, temperature)).flatten(0, 1),
        token_ids.roll(-1, dims=1).flatten(),
        reduction="none",
    )
    return _aligned(-negative.view_as(token_ids)[:, :-1])


def token_entropies(logits: Tensor, token_ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy of the distribution from which each token was sampled.

    Same arguments and alignment as `token_log_probs`; only the shape of `token_ids` matters.
    Returns: [B, T], nats, in [0, log V].
    """
    _require_logits_of(token_ids, logits)
    log_p = torch.log_softmax(_wide(_tempered(logits[:, :-1], temperature)), -1)
    # p log p with log p from the logits: log of a p that underflowed to 0 would be -inf, and the
    # gradient 0 * inf. It is -inf itself for a token that a logits processor excluded.
    log_p = log_p.masked_fill(log_p.isneginf(), 0.0)
    return _aligned(-(log_p.exp() * log_p).sum(-1))


def _require_logits_of(token_ids: Tensor, logits: Tensor) -> None:
    if logits.dim() != 3 or logits.shape[:2] != token_ids.shape:
        raise ValueError(
            f"logits {list(logits.shape)} must be [B, T, V] for token_ids {list(token_ids.shape)}"
        )


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _aligned(predicted: Tensor) -> Tensor:
    """[B, T - 1] about tokens 1.. -> [B, T] with 0 at token 0, which nothing predicts."""
    return pad(predicted, (1, 0))
