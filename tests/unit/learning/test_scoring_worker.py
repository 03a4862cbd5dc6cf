"""Frozen models scored in batches, against one forward pass per rollout."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from equilibrate.errors import DataError
from equilibrate.learning.scoring import ScoringWorker
from equilibrate.models.device import Accelerator
from equilibrate.models.new_scorer import new_twin_scorer
from equilibrate.models.scorer import TwinScoreModel
from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from equilibrate.sandbox.tokenizer import build_tokenizer
from equilibrate.types import Category, FinishReason, Message, Rollout, ScorerKind
from tests.tiny_models import TINY_LLAMA, VOCABULARY, write_scorers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorers")
    sizes = {**TINY_LLAMA, "initializer_range": 0.2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / "reference")
    write_scorers(folder, sizes, bias=0.5)
    return folder


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    rng = np.random.default_rng(0)
    return [
        Rollout(
            prompt_id=str(length),
            copy=0,
            category=Category.GENERAL,
            policy_version=0,
            token_ids=rng.integers(1, VOCABULARY, length),
            response_mask=np.arange(length) >= length // 3,
            rollout_log_probs=np.zeros(length, np.float32),
            finish_reason=FinishReason.STOP,
        )
        for length in (7, 19, 4, 12, 12, 30)
    ]


def make_worker(models: Path, **changes: Any) -> ScoringWorker:
    settings: dict[str, Any] = {
        "reward": str(models / "reward"),
        "cost": str(models / "cost"),
        "reference": str(models / "reference"),
        "device": "cpu",
        "dtype": "float32",
        "cpu_threads": 1,
        "max_tokens_per_batch": 64,
        "temperature": 0.7,
    }
    return ScoringWorker(**{**settings, **changes})


@torch.no_grad()
def test_scores_are_those_of_each_rollout_alone(models: Path, rollouts: list[Rollout]) -> None:
    scored = make_worker(models).score(rollouts)
    assert [s.rollout.prompt_id for s in scored] == [r.prompt_id for r in rollouts]
    scorers = {
        kind: AutoModelForSequenceClassification.from_pretrained(models / kind)
        for kind in ("reward", "cost")
    }
    reference = AutoModelForCausalLM.from_pretrained(models / "reference")
    for one in scored:
        token_ids = torch.from_numpy(one.rollout.token_ids)[None]
        length = token_ids.shape[1]
        for kind, per_token, verdict in (
            ("reward", one.token_rewards, one.reward),
            ("cost", one.token_costs, one.cost),
        ):
            # The library's own forward gives the score of the last token; the sidecar adds 0.5.
            prefixes = [
                float(scorers[kind](token_ids[:, : end + 1]).logits) + 0.5 for end in range(length)
            ]
            np.testing.assert_allclose(per_token, prefixes, rtol=1e-4, atol=1e-5)
            assert verdict == per_token[-1]
            assert per_token.dtype == np.float32
        log_softmax = torch.log_softmax(reference(token_ids).logits[0] / 0.7, -1)
        expected = [0.0] + [float(log_softmax[t - 1, token_ids[0, t]]) for t in range(1, length)]
        expected = [x if kept else 0.0 for x, kept in zip(expected, one.rollout.response_mask)]  # noqa: B905
        np.testing.assert_allclose(one.ref_log_probs, expected, rtol=1e-4, atol=1e-5)


def test_batching_does_not_change_the_scores(models: Path, rollouts: list[Rollout]) -> None:
    small = make_worker(models, max_tokens_per_batch=1).score(rollouts)
    large = make_worker(models, max_tokens_per_batch=10_000).score(rollouts)
    for one, other in zip(small, large, strict=True):
        for name in ("token_rewards", "token_costs", "ref_log_probs"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


def test_without_a_cost_model_nothing_costs(models: Path, rollouts: list[Rollout]) -> None:
    scored = make_worker(models, cost="").score(rollouts)
    assert all(s.cost == 0.0 and not s.token_costs.any() for s in scored)
    assert any(s.reward != 0.0 for s in scored)


def test_no_rollouts_give_no_scores(models: Path) -> None:
    assert make_worker(models).score([]) == []


def test_swapped_models_are_refused(models: Path) -> None:
    with pytest.raises(DataError, match=r"kind \('cost'\) must be 'reward'"):
        make_worker(models, reward=str(models / "cost"))


def test_folder_that_is_no_model_is_named(models: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        make_worker(models, reference=str(tmp_path))


def test_a_function_scores_the_end_and_no_other_token(
    models: Path, rollouts: list[Rollout], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def f(asked): return [len(a['messages']) for a in asked]")
    tokenizer = build_tokenizer()
    shutil.copytree(models / "reference", tmp_path / "reference")
    tokenizer.save_pretrained(tmp_path / "reference")
    turns = (Message(role="user", content="how ?"),)
    asked = [replace(one, messages=turns * (row + 1)) for row, one in enumerate(rollouts)]
    worker = make_worker(
        models, reward=f"{tmp_path}/mine.py:f", reference=str(tmp_path / "reference")
    )
    plain = make_worker(models).score(rollouts)
    for row, (one, before) in enumerate(zip(worker.score(asked), plain, strict=True)):
        assert one.reward == one.token_rewards[-1] == row + 1
        assert not one.token_rewards[:-1].any()
        assert one.cost == before.cost
        assert np.array_equal(one.ref_log_probs, before.ref_log_probs)


def test_two_heads_of_one_model_are_read_in_one_pass(
    models: Path, rollouts: list[Rollout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = Accelerator("cpu", "float32")
    kinds: tuple[ScorerKind, ...] = ("cost", "reward")
    twins = new_twin_scorer(models / "reference", kinds, cpu, seed=0, pad_token_id=0)
    twins.model.save_pretrained(tmp_path / "twins")
    write_sidecar(tmp_path / "twins", *(ScorerSidecar(kind=kind, scale=9.0) for kind in kinds))
    expected = {}
    for kind in kinds:  # each head apart, beside a model of the other kind
        own = make_worker(models, **{kind: str(tmp_path / "twins")}).score(rollouts)
        expected[kind] = [getattr(one, f"token_{kind}s") for one in own]
    worker = make_worker(models, reward=str(tmp_path / "twins"), cost=str(tmp_path / "twins"))
    calls = []
    forward = TwinScoreModel.forward
    monkeypatch.setattr(
        TwinScoreModel, "forward", lambda self, ids: (calls.append(ids), forward(self, ids))[1]
    )
    for row, one in enumerate(worker.score(rollouts)):
        np.testing.assert_allclose(one.token_rewards, expected["reward"][row], atol=1e-5)
        np.testing.assert_allclose(one.token_costs, expected["cost"][row], atol=1e-5)
        assert one.reward == one.token_rewards[-1] != one.cost == one.token_costs[-1]
    assert sum(len(ids) for ids in calls) == len(rollouts)
    # One head of the two as another reward, beside a reward of another folder.
    more = {"more_rewards": [(str(tmp_path / "twins"), 2.0)]}
    added = make_worker(models, cost=str(tmp_path / "twins"), **more).score(rollouts)
    first = make_worker(models).score(rollouts)
    for row, (one, before) in enumerate(zip(added, first, strict=True)):
        wanted = before.token_rewards + 2 * expected["reward"][row]
        np.testing.assert_allclose(one.token_rewards, wanted, atol=1e-5)
        np.testing.assert_allclose(one.token_costs, expected["cost"][row], atol=1e-5)
