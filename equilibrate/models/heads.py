"""What a model does around its head, found out by trying it.

Configs spell caps, scales and projections in too many ways to be read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PROBE_LOGIT = 300.0
"""Beyond any cap in use (30 to 50), so that a capped output differs from it."""


@torch.no_grad()
def is_plain_head(model: Any, head: nn.Linear, token_ids: Tensor) -> bool:
    """Whether a model's output is its head's, and the head reads the last hidden state, no more.

    The head is made to give large numbers: on small ones a cap does nothing that can be seen.

    Args: token_ids: [1, T], any but padding.
    """
    hidden = model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
    ends = torch.linspace(-PROBE_LOGIT, PROBE_LOGIT, head.out_features)
    probe = ends.to(head.weight.device, head.weight.dtype)
    seen: list[Tensor] = []

    def replace(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> Tensor:
        seen.append(inputs[0])
        return probe.expand(*inputs[0].shape[:-1], -1)

    hook = head.register_forward_hook(replace)
    try:
        logits = model(input_ids=token_ids, use_cache=False).logits
    finally:
        hook.remove()
    return (
        len(seen) == 1
        and seen[0].shape == hidden.shape
        and torch.allclose(seen[0], hidden)
        and torch.allclose(logits, probe.expand_as(logits).to(logits.dtype))
    )


@torch.no_grad()
def is_causal(model: Any) -> bool:
    """Whether the state of a token does not depend on the one after it."""
    hidden = model.base_model(input_ids=trial_tokens(model), use_cache=False).last_hidden_state
    return torch.allclose(hidden[0, 0], hidden[1, 0], rtol=1e-4, atol=1e-5)


def trial_tokens(model: Any) -> Tensor:
    """[2, 2] ids that differ in the second column alone, none of them padding."""
    padding = model.config.get_text_config().pad_token_id
    ids = [token for token in range(4) if token != padding]
    device = next(model.parameters()).device
    return torch.tensor([[ids[0], ids[1]], [ids[0], ids[2]]], device=device)
