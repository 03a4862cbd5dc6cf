"""Adapters: by hand at one layer, and on toy models of several kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equilibrate.config.training import AdapterConfig
from equilibrate.errors import ConfigError
from equilibrate.models.device import Accelerator, Dtype
from equilibrate.models.lora import (
    LoraLinear,
    adapt,
    adapted_names,
    is_adapter,
    merged_weights,
    part_shapes,
    with_adapter,
    write_adapter,
)
from tests.unit.models.toys import CONFIGS, causal_model, write_policy

FLOAT32 = Accelerator("cpu", "float32")
KINDS = [kind for kind in CONFIGS if kind != "gpt2"]
"""GPT-2 has no linear layers of PyTorch's kind."""
TOKENS = torch.arange(3, 27).view(2, 12)


class Held(nn.Module):
    """A model where `adapt` looks for it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def adapted(kind: str = "llama", *, filled: bool = True, **settings: Any) -> Any:
    held = Held(causal_model(kind).eval())
    adapt(held, AdapterConfig(**settings), FLOAT32, seed=0)
    if filled:
        generator = torch.Generator().manual_seed(1)
        for name, parameter in held.named_parameters():
            if name.endswith("lora_B"):
                parameter.data.normal_(std=0.3, generator=generator)
    return held.model


def test_one_layer_by_hand() -> None:
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    linear.bias.data = torch.tensor([10.0, 20.0])
    layer = LoraLinear(linear, AdapterConfig(rank=1, alpha=3), torch.Generator())
    layer.lora_A.data = torch.tensor([[1.0, -1.0]])
    layer.lora_B.data = torch.tensor([[1.0], [2.0]])
    # W x + b = (1 + 4 + 10, 3 + 8 + 20); A x = -1; 3 B A x = (-3, -6).
    assert layer(torch.tensor([[[1.0, 2.0]]])).tolist() == [[[12.0, 25.0]]]
    assert layer.merged().tolist() == [[4.0, -1.0], [9.0, -2.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_at_the_model_and_ends_in_plain_weights(kind: str) -> None:
    plain = causal_model(kind).eval()
    begun = adapted(kind, filled=False)
    torch.testing.assert_close(begun(TOKENS).logits, plain(TOKENS).logits)
    model = adapted(kind)
    assert not torch.allclose(model(TOKENS).logits, plain(TOKENS).logits, atol=1e-3)
    weights = dict(merged_weights(model))
    assert weights.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(plain(TOKENS).logits, model(TOKENS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_on_the_model_below_give_the_same_bits(kind: str, dtype: Dtype) -> None:
    """What a generator does with its own folder and what the learner would merge."""
    accelerator, settings = Accelerator("cpu", dtype), AdapterConfig(rank=2, alpha=3)
    plain, held = causal_model(kind), Held(causal_model(kind))
    adapt(held, settings, accelerator, seed=0)
    generator = torch.Generator().manual_seed(1)
    parts = {
        name: parameter.data.normal_(std=0.3, generator=generator)
        for name, parameter in held.model.named_parameters()
        if is_adapter(name)
    }
    assert {name: tuple(part.shape) for name, part in parts.items()} == part_shapes(plain, settings)
    merged = dict(merged_weights(held.model))
    found = dict(with_adapter(plain.named_parameters(), parts, settings, accelerator))
    assert list(found) == list(merged)
    for name, tensor in found.items():
        # A layer without an adapter is held in the run's dtype by the learner.
        assert torch.equal(tensor.to(merged[name].dtype), merged[name]), name


def test_only_the_adapter_and_a_score_are_trained() -> None:
    held = Held(causal_model())
    held.model.score = nn.Linear(16, 1, bias=False)
    adapt(held, AdapterConfig(rank=2), FLOAT32, seed=0)
    trained = {name for name, p in held.model.named_parameters() if p.requires_grad}
    assert "score.weight" in trained
    rest = trained - {"score.weight"}
    assert all(is_adapter(name) for name in rest)
    assert len(rest) == 2 * 7 * 2  # layers, linear layers of each, A and B


def test_the_seed_alone_draws_it() -> None:
    first, second, other = (
        dict(held.named_parameters())["model.model.layers.0.mlp.up_proj.lora_A"]
        for held in (_drawn(0), _drawn(0), _drawn(1))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def _drawn(seed: int) -> nn.Module:
    held = Held(causal_model())
    adapt(held, AdapterConfig(), FLOAT32, seed=seed)
    return held


def test_named_layers_alone_are_adapted_and_unknown_ones_refused() -> None:
    model = causal_model()
    names = adapted_names(model, AdapterConfig(target_modules=("q_proj",)))
    assert names == [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    with pytest.raises(ConfigError, match=r"'wq'.*has no such layer; it has down_proj, .*v_proj"):
        adapted_names(model, AdapterConfig(target_modules=("wq",)))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no linear layers"):
        adapted_names(causal_model("gpt2"), AdapterConfig())
    with pytest.raises(ValueError, match="last part of a name"):
        AdapterConfig(target_modules=("self_attn.q_proj",))


@pytest.mark.parametrize("is_scorer", [False, True])
def test_peft_loads_what_is_written(tmp_path: Path, is_scorer: bool) -> None:
    peft = pytest.importorskip("peft", reason="peft is in the unit tests' environment")
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    base = write_policy(tmp_path / "base")
    kind = AutoModelForSequenceClassification if is_scorer else AutoModelForCausalLM
    options = {"num_labels": 1} if is_scorer else {}
    torch.manual_seed(0)
    held = Held(kind.from_pretrained(base, **options).eval())
    held.model.config.pad_token_id = 0
    adapter = AdapterConfig(rank=4, alpha=8)
    adapt(held, adapter, FLOAT32, seed=0)
    for parameter in held.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    trained = {n: p.detach() for n, p in held.model.named_parameters() if p.requires_grad}
    write_adapter(tmp_path / "adapter", trained, adapter, base=str(base))

    loaded = peft.PeftModel.from_pretrained(
        kind.from_pretrained(base, **options).eval(), tmp_path / "adapter"
    )
    loaded.config.pad_token_id = 0
    torch.testing.assert_close(
        loaded(TOKENS).logits, held.model(TOKENS).logits, atol=1e-5, rtol=1e-4
    )
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
