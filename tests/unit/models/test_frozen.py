"""Frozen models are smaller and say the same, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from equilibrate.models.device import Accelerator
from equilibrate.models.frozen import frozen, share_frozen
from equilibrate.models.policy import PolicyModel
from equilibrate.models.scorer import ScoreModel
from equilibrate.models.sidecar import ScorerSidecar
from tests.unit.models.toys import CONFIGS, causal_model

NARROW = Accelerator("cpu", "bfloat16")
TOKENS = torch.arange(3, 27).view(2, 12)
MASK = torch.ones_like(TOKENS, dtype=torch.bool)


def policy(kind: str) -> PolicyModel:
    return PolicyModel(causal_model(kind).eval(), NARROW)


def scorer(kind: str) -> ScoreModel:
    model: Any = causal_model(kind).eval()
    torch.manual_seed(1)
    model.score = nn.Linear(16, 1, bias=False)
    return ScoreModel(model, ScorerSidecar(kind="cost"), NARROW)


def test_what_two_models_hold_alike_is_held_once() -> None:
    one, other = frozen(policy("llama-tied"), NARROW), frozen(scorer("llama-tied"), NARROW)
    moved = other.model.model.layers[0].mlp.up_proj.weight
    moved.data = moved.data + 1
    expected, named = other(TOKENS), dict(other.named_parameters())
    trained = named["model.model.norm.weight"].requires_grad_(True)
    share_frozen(other, one)
    assert torch.equal(other(TOKENS), expected)
    held = {parameter.data_ptr() for parameter in one.parameters()}
    own = {name for name, parameter in named.items() if parameter.data_ptr() not in held}
    assert own == {
        "model.score.weight",
        "model.model.layers.0.mlp.up_proj.weight",
        "model.model.norm.weight",
    }
    assert trained.requires_grad


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_bit_of_what_they_say_changes(kind: str) -> None:
    expected = policy(kind)(TOKENS, MASK, 0.7)
    held = frozen(policy(kind), NARROW)
    assert not any(parameter.requires_grad for parameter in held.parameters())
    for found, wanted in zip(held(TOKENS, MASK, 0.7), expected, strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(frozen(scorer(kind), NARROW)(TOKENS), scorer(kind)(TOKENS))


def test_layers_of_the_trunk_are_held_in_half_the_bytes() -> None:
    model: Any = frozen(scorer("qwen2"), NARROW).model
    by_dtype = {name: parameter.dtype for name, parameter in model.named_parameters()}
    narrow = {name for name, dtype in by_dtype.items() if dtype is torch.bfloat16}
    assert narrow == {name for name in by_dtype if "_proj." in name}
    assert "model.layers.0.self_attn.q_proj.bias" in narrow
    wide = frozen(policy("qwen2"), Accelerator("cpu", "float32")).model
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
