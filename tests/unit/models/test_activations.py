"""Activations that are computed again: the same numbers, and fewer tensors kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from equilibrate.errors import ConfigError
from equilibrate.models.activations import checkpoint_activations
from equilibrate.models.device import Accelerator
from equilibrate.models.policy import PolicyModel
from tests.unit.models.toys import CONFIGS, causal_model

TOKENS = torch.arange(3, 27).view(2, 12)
MASK = torch.ones_like(TOKENS, dtype=torch.bool)


def gradients(policy: PolicyModel) -> tuple[dict[str, Any], int]:
    """And the bytes that the forward pass keeps for the backward one."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        log_probs, _ = policy(TOKENS, MASK, 1.0)
    log_probs.sum().backward()
    return {name: p.grad for name, p in policy.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_no_gradient_changes(kind: str, dtype: Any) -> None:
    accelerator = Accelerator("cpu", dtype)
    expected, all_kept = gradients(PolicyModel(causal_model(kind).eval(), accelerator))
    policy = PolicyModel(causal_model(kind).eval(), accelerator)
    checkpoint_activations(policy)
    found, kept = gradients(policy)
    for name, gradient in expected.items():
        if gradient is not None:
            assert torch.equal(found[name], gradient), name
    assert kept < all_kept


def test_what_would_drop_something_is_refused() -> None:
    policy = PolicyModel(causal_model("gpt2").eval(), Accelerator("cpu", "float32"))
    layer = policy.model.transformer.h[0]
    plain = layer.forward

    def dropping(hidden: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        return plain(torch.nn.functional.dropout(hidden, 0.5, layer.training), *inputs, **options)

    layer.forward = dropping
    with pytest.raises(ConfigError, match="GPT2LMHeadModel drop activations in training"):
        checkpoint_activations(policy)


def test_a_model_without_such_layers_is_refused() -> None:
    policy = PolicyModel(causal_model().eval(), Accelerator("cpu", "float32"))
    policy.model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="has none for a LlamaForCausalLM"):
        checkpoint_activations(policy)
