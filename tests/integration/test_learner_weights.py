"""What leaves a learner: weights for the generators, folders, and the average of its iterates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from actors.engine import checkpoint_weights, model_weights
from actors.export import _write_model
from actors.learner import LearnerWorker
from actors.weights import unpack_weights
from equilibrate.config.training import AdapterConfig
from equilibrate.types import ScoredRollout
from tests.integration.learners import (
    make_settings,
    snapshot,
    update,
)

pytestmark = [
    pytest.mark.usefixtures("group_of_one"),
    pytest.mark.timeout(600),
    *(
        pytest.mark.filterwarnings(f"ignore::{kind}Warning")
        for kind in ("Future", "User", "Deprecation", "Resource")
    ),
]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_export_is_a_model_folder_with_tokenizer(
    models: Path, scored: list[ScoredRollout], tmp_path: Path, stage: int
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    worker = LearnerWorker(make_settings(models, learner={"zero_stage": stage}))
    update(worker, scored)
    worker.export(tmp_path)
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())
    for name, tensor in model_weights(worker._policy):
        torch.testing.assert_close(loaded.pop(name).detach(), tensor, rtol=0, atol=0)
    assert not loaded
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template
    # A checkpoint gives the same folder without the learner.
    worker.save(tmp_path / "saved")
    _write_model(models / "policy", checkpoint_weights(tmp_path / "saved" / "policy"), tmp_path)
    again = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())
    for name, tensor in model_weights(worker._policy):
        torch.testing.assert_close(again.pop(name).detach(), tensor, rtol=0, atol=0)
    assert not again


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_adapter_is_exported_merged_and_by_itself(
    models: Path, scored: list[ScoredRollout], tmp_path: Path, stage: int
) -> None:
    learner = {"zero_stage": stage, "adapter": {"rank": 4, "alpha": 8}}
    worker = LearnerWorker(make_settings(models, learner=learner))
    start = load_file(models / "policy" / "model.safetensors")
    update(worker, scored)
    worker.export(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    moved = {name for name, value in written.items() if not np.array_equal(value, start[name])}
    assert moved == {name for name in start if "_proj." in name}
    parts = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    for name in moved:
        a, b = (
            parts[f"base_model.model.{name.removesuffix('weight')}lora_{part}.weight"]
            for part in "AB"
        )
        assert a.shape[0] == b.shape[1] == 4
        np.testing.assert_allclose(written[name], start[name] + 2 * b @ a, atol=1e-6)
    # The generators get the adapter alone, as peft's files have it.
    packed, _ = worker.pack_weights()
    assert packed is not None
    assert packed.adapter == AdapterConfig(rank=4, alpha=8)
    sent = dict(unpack_weights(packed))
    assert {f"base_model.model.{name}.weight" for name in sent} == set(parts)
    for name, tensor in sent.items():
        np.testing.assert_array_equal(tensor.numpy(), parts[f"base_model.model.{name}.weight"])
    # A checkpoint holds what is trained and no more.
    (tmp_path / "saved").mkdir()
    worker.save(tmp_path / "saved")
    trained = checkpoint_weights(tmp_path / "saved" / "policy")
    assert set(trained) == {
        name.removeprefix("base_model.model.").removesuffix(".weight") for name in parts
    }
    size = sum(f.stat().st_size for f in (tmp_path / "saved/policy").rglob("*") if f.is_file())
    floats = sum(value.size for value in parts.values())
    assert size < 4 * 4 * floats + 100_000


def test_packed_weights_carry_the_tied_head(models: Path) -> None:
    packed, rank = LearnerWorker(make_settings(models)).pack_weights()
    assert rank == 0
    assert packed is not None
    slots = {slot.name: slot for slot in packed.slots}
    head, embedding = slots["lm_head.weight"], slots["model.embed_tokens.weight"]
    assert (head.bucket, head.offset) == (embedding.bucket, embedding.offset)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_the_average_is_packed_exported_and_saved(
    models: Path, scored: list[ScoredRollout], tmp_path: Path, zero_stage: int
) -> None:
    """After one update half of the start and half of what it moved to."""
    learner = {"average_decay": 0.5, "zero_stage": zero_stage}
    worker = LearnerWorker(make_settings(models, learner=learner))
    before = snapshot(worker)
    update(worker, scored)
    after = snapshot(worker)
    expected = {
        name.removeprefix("policy/model."): (value + after[name]) / 2
        for name, value in before.items()
        if name.startswith("policy/")
    }
    packed, _ = worker.pack_weights(averaged=True)
    assert packed is not None
    sent = dict(unpack_weights(packed))
    worker.export(tmp_path / "average", averaged=True)
    worker.export(tmp_path / "last")
    written = load_file(tmp_path / "average" / "model.safetensors")
    last = load_file(tmp_path / "last" / "model.safetensors")
    for name, value in expected.items():
        np.testing.assert_allclose(sent[name].numpy(), value, rtol=0, atol=1e-7)
        np.testing.assert_array_equal(written[name], sent[name].numpy())
        np.testing.assert_array_equal(last[name], after[f"policy/model.{name}"])
    (tmp_path / "saved").mkdir()
    worker.save(tmp_path / "saved")
    again = LearnerWorker(make_settings(models, learner=learner))
    again.load(tmp_path / "saved")
    for one in (worker, again):
        one._settings = replace(one._settings, parity_tolerance=10.0)
        update(one, scored, iteration=1)
    first, second = (one.pack_weights(averaged=True)[0] for one in (worker, again))
    assert all((a == b).all() for a, b in zip(first.buckets, second.buckets, strict=True))
