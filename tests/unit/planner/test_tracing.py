"""Passes that are traced without numbers against the same passes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equilibrate.config.training import TrainingGroup
from equilibrate.errors import DataError
from equilibrate.models.attention import attention_for
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import Role
from equilibrate.models.frozen import frozen
from equilibrate.models.policy import PolicyModel
from equilibrate.models.scorer import ScoreModel
from equilibrate.models.sidecar import ScorerSidecar
from equilibrate.models.trainable import prepare_training
from equilibrate.planner.peak import peak_bytes
from equilibrate.planner.tracing import trace
from tests.unit.models.toys import CONFIGS, causal_model, write_policy

ROWS, LENGTH = 8, 48
WAYS: dict[str, TrainingGroup | None] = {
    "all": TrainingGroup(),
    "adapter": TrainingGroup.model_validate({"adapter": {"rank": 4}}),
    "again": TrainingGroup(activation_checkpointing=True),
    "adapter-again": TrainingGroup.model_validate(
        {"adapter": {"rank": 4}, "activation_checkpointing": True}
    ),
    "read": None,
}


def measured(kind: str, role: Role, accelerator: Accelerator, group: TrainingGroup | None) -> int:
    model: Any = causal_model(kind).eval()
    model.config._attn_implementation = attention_for(model, accelerator)
    module: nn.Module
    if role == "policy":
        module = PolicyModel(model, accelerator)
    else:
        model.score = nn.Linear(16, 1, bias=False)
        module = ScoreModel(model, ScorerSidecar(kind=role), accelerator)
    if group is None:
        frozen(module, accelerator)
    else:
        prepare_training(module, group, accelerator, seed=0)
    token_ids = torch.full((ROWS, LENGTH), 5)
    mask = torch.ones_like(token_ids, dtype=torch.bool)

    def run() -> None:
        with torch.set_grad_enabled(group is not None):
            outputs = module(token_ids, mask, 1.0)[0] if role == "policy" else module(token_ids)
        if group is not None:
            outputs.sum().backward()

    run()
    return peak_bytes(run)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "role"),
    [
        ("llama", "policy"),
        ("qwen2", "policy"),
        ("gpt-neox", "policy"),
        ("gemma2", "policy"),
        ("llama", "cost"),
    ],
)
def test_a_pass_needs_what_its_trace_says(
    tmp_path: Path, kind: str, role: Role, dtype: Any, way: str
) -> None:
    accelerator = Accelerator("cpu", dtype)
    folder = write_policy(tmp_path / "model", kind)
    traced = trace(folder, role, accelerator, rows=ROWS, length=LENGTH, group=WAYS[way])
    found = measured(kind, role, accelerator, WAYS[way])
    assert traced.activations == pytest.approx(found, rel=0.03)


def test_weights_and_gradients_by_hand(tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()  # its config says enough
    whole = sum(p.numel() for p in causal_model().parameters())
    plain = trace(
        folder, "policy", Accelerator("cpu", "float32"), rows=1, length=8, group=WAYS["all"]
    )
    assert plain.parameters == plain.trained == whole
    assert plain.weights == plain.gradients == 4 * whole
    narrow = trace(
        folder, "policy", Accelerator("cpu", "bfloat16"), rows=1, length=8, group=WAYS["adapter"]
    )
    # In each of two layers: q and o of 16 x 16, k and v of 16 x 8, three of 16 x 24.
    linear = 2 * (2 * 256 + 2 * 128 + 3 * 384)
    parts = 4 * 2 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 24))
    assert narrow.trained == parts
    assert narrow.weights == 4 * (whole - linear) + 2 * linear + 4 * parts


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_kind_is_traced_or_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder, accelerator = write_policy(tmp_path / "model", kind), Accelerator("cpu", "bfloat16")
    options: Any = {"rows": 2, "length": 16, "group": WAYS["again"]}
    if kind in ("mixtral", "qwen2-moe", "gpt-oss"):
        with pytest.raises(DataError, match="mixture of experts needs depends on the numbers"):
            trace(folder, "policy", accelerator, **options)
    else:
        assert trace(folder, "policy", accelerator, **options).activations > 0
