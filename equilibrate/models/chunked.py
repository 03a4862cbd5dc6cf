"""Log-probs and entropies straight from hidden states, a few tokens at a time.

The logits of a batch, [tokens, vocabulary], are by far its largest tensor. Here they exist for one
chunk of tokens only and are computed once more in the backward pass; tokens outside the mask never
reach the head. With z the logits over the temperature, p = softmax(z) and H the entropy of p,

    d log p[target] / dz = onehot(target) - p,      dH / dz = -p * (log p + H).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK_TOKENS = 128
"""Fewer make thin products, and every chunk rewrites the whole gradient of the head: with 32 tokens
forward and backward take a quarter longer (vocabulary 32,000, hidden 256, one CPU thread). Twice as
many gain nothing there, and a seventh with a vocabulary of 152,000, for twice the memory."""


def chunked_log_probs(
    hidden: Tensor,
    head_weight: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    head_bias: Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each kept token given those before it, and entropy of what it was sampled from.

        logits[:, t] = hidden[:, t] @ head_weight.T + head_bias
        log_probs[:, t], entropies[:, t] = of softmax(logits[:, t - 1] / temperature)

    The same numbers as `token_log_probs` and `token_entropies`, which take the logits.

    Args:
        hidden: [B, T, D], what the head of a causal model reads; `hidden[:, t]` predicts token
            t + 1. States that predict no kept token may hold anything, nan included.
        head_weight: [V, D], as in `nn.Linear`. Products are taken in the wider dtype of `hidden`
            and `head_weight`, under autocast too; all else in float32 or wider.
        token_ids: [B, T] int64.
        mask: [B, T] bool, True on tokens to compute; at token 0 it has no effect.
        temperature: > 0; the one that sampled the tokens.
        head_bias: [V], finite.
        chunk_tokens: how many tokens have logits at the same time.
    Returns: log_probs and entropies, each [B, T], nats, float32 or wider; 0 where nothing was
        computed. Both have a first derivative and no second.
    Raises: ValueError if the shapes do not belong together or `chunk_tokens` is below 1;
        RuntimeError from a backward pass that is to be differentiated itself.
    """
    _require_shapes(hidden, head_weight, token_ids, mask, head_bias)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens ({chunk_tokens}) must be at least 1")
    kept = mask[:, 1:]
    log_probs, entropies = log_probs_of_states(
        hidden[:, :-1][kept],
        head_weight,
        head_bias,
        token_ids[:, 1:][kept],
        temperature=temperature,
        chunk_tokens=chunk_tokens,
    )
    return _spread(log_probs, kept), _spread(entropies, kept)


def log_probs_of_states(
    states: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """As `chunked_log_probs`, of states [N, D] that each predict one of `targets` [N]."""
    with _no_autocast(states):
        found: tuple[Tensor, Tensor] = _ChunkedHead.apply(  # type: ignore[no-untyped-call]
            states, head_weight, head_bias, targets, temperature, chunk_tokens
        )
    return found


class _ChunkedHead(torch.autograd.Function):
    """Hidden states [N, D] and targets [N] to log-probs [N] and entropies [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        wide_hidden, wide_weight = _same_dtype(hidden, weight)
        found = hidden.new_empty(3, len(hidden), dtype=_wide_dtype(wide_hidden))
        log_probs, entropies, log_sums = found.unbind()
        for rows in _chunks(len(hidden), chunk_tokens):
            logits = _logits(wide_hidden[rows], wide_weight, bias, temperature)
            log_sums[rows] = logits.logsumexp(1)
            log_p = logits.sub_(log_sums[rows, None])
            log_probs[rows] = log_p.gather(1, targets[rows, None])[:, 0]
            entropies[rows] = -log_p.exp().mul_(log_p).sum(1)
        # The head itself, not a cast or a view of it: ZeRO-3 brings back the tensor that it knows.
        ctx.save_for_backward(hidden, weight, bias, targets, log_sums, entropies)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return log_probs, entropies

    @staticmethod
    def backward(
        ctx: Any, grad_log_probs: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # torch's `once_differentiable` lets it pass, with a wrong result, if the loss is linear.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "chunked_log_probs has no second derivative (create_graph=True); "
                "use token_log_probs and token_entropies"
            )
        *inputs, targets, log_sums, entropies = ctx.saved_tensors
        sums = [
            torch.zeros_like(given, dtype=log_sums.dtype) if is_needed else None
            for given, is_needed in zip(inputs, ctx.needs_input_grad[:3], strict=True)
        ]
        hidden, weight, bias = inputs
        # Unread outputs have no gradient; those of the entropies then cost nothing.
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(log_sums)
        with _no_autocast(hidden):
            hidden, weight = _same_dtype(hidden, weight)
            for rows in _chunks(len(hidden), ctx.chunk_tokens):
                logits = _logits(hidden[rows], weight, bias, ctx.temperature)
                grad_logits = _grad_logits(
                    logits.sub_(log_sums[rows, None]),
                    targets[rows, None],
                    entropies[rows, None],
                    grad_log_probs[rows, None],
                    None if grad_entropies is None else grad_entropies[rows, None],
                ).div_(ctx.temperature)
                _add_products(sums, rows, grad_logits, hidden[rows], weight)
        return *sums, None, None, None


def _grad_logits(
    log_p: Tensor,
    targets: Tensor,
    entropies: Tensor,
    grad_log_probs: Tensor,
    grad_entropies: Tensor | None,
) -> Tensor:
    """[n, V], in place of log_p; the rest is [n, 1]."""
    slope = -grad_log_probs
    if grad_entropies is not None:
        slope = slope - grad_entropies * (log_p + entropies)
    grad_logits = log_p.exp_().mul_(slope)
    return grad_logits.scatter_add_(1, targets, grad_log_probs)


def _add_products(
    sums: list[Tensor | None], rows: slice, grad_logits: Tensor, hidden: Tensor, weight: Tensor
) -> None:
    """What the logits of one chunk add to the gradients of hidden states, weight and bias."""
    grad_hidden, grad_weight, grad_bias = sums
    narrow = grad_logits.to(weight.dtype)
    if grad_hidden is not None:
        grad_hidden[rows] = narrow @ weight
    if grad_weight is not None and narrow.dtype == grad_weight.dtype:
        grad_weight.addmm_(narrow.T, hidden)
    elif grad_weight is not None:
        grad_weight += narrow.T @ hidden
    if grad_bias is not None:
        grad_bias += grad_logits.sum(0)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """[n, D] -> [n, V], float32 or wider and free to be overwritten."""
    logits = hidden @ weight.T
    logits = logits.to(_wide_dtype(logits))
    if bias is not None:
        logits += bias
    return logits if temperature == 1.0 else logits.div_(temperature)


def _chunks(num_rows: int, chunk_tokens: int) -> list[slice]:
    return [slice(start, start + chunk_tokens) for start in range(0, num_rows, chunk_tokens)]


def _same_dtype(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    return hidden.to(dtype), weight.to(dtype)


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _no_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _spread(values: Tensor, kept: Tensor) -> Tensor:
    """[N] about the kept ones of tokens 1.. -> [B, T]; 0 elsewhere."""
    return pad(torch.zeros_like(kept, dtype=values.dtype).masked_scatter(kept, values), (1, 0))


def _require_shapes(
    hidden: Tensor, head_weight: Tensor, token_ids: Tensor, mask: Tensor, head_bias: Tensor | None
) -> None:
    given = {"hidden": hidden, "head_weight": head_weight, "token_ids": token_ids, "mask": mask}
    if head_bias is not None:
        given["head_bias"] = head_bias
    if (
        (hidden.dim(), head_weight.dim()) != (3, 2)
        or hidden.shape[2] != head_weight.shape[1]
        or not hidden.shape[:2] == token_ids.shape == mask.shape
        or (head_bias is not None and head_bias.shape != head_weight.shape[:1])
    ):
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in given.items())
        raise ValueError(
            f"{shapes} must be hidden [B, T, D], head_weight [V, D], token_ids and mask [B, T], "
            "head_bias [V]"
        )
