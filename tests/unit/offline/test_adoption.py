"""A scorer of somebody else on labelled answers: converted, measured, its zero placed, used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from equilibrate.cli import main
from equilibrate.evaluation.model_judge import AnswerScorer
from equilibrate.learning.scoring import ScoringWorker
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import WEIGHT_FILE, check_models
from equilibrate.models.loading import load_scorer
from equilibrate.models.sidecar import (
    ScorerSidecar,
    propose_budget,
    read_heads,
    read_sidecar,
    write_sidecar,
)
from equilibrate.sandbox.tokenizer import build_tokenizer
from equilibrate.types import Category, FinishReason, Rollout
from tests.tiny_models import world_llama

TOKENIZER = build_tokenizer()
WORDS = ["lamp", "clean", "first", "fine", "common", "item", "how", "what", "the", "is"]
PROMPTS = [f"how do i {word} the {other} ?" for word in WORDS[:5] for other in WORDS[:5]]


def write_policy(folder: Path) -> Path:
    torch.manual_seed(0)
    config = world_llama(TOKENIZER)
    LlamaForCausalLM(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def write_other_policy(folder: Path) -> Path:
    """With another word in its vocabulary."""
    write_policy(folder)
    vocabulary = (folder / "tokenizer.json").read_text().replace('"lamp"', '"lampe"')
    (folder / "tokenizer.json").write_text(vocabulary)
    return folder


def write_source(folder: Path, name: str = "value_head", *, bias: float = 3.0) -> Path:
    """A policy's trunk with a head as OpenRLHF saved it in 2023: with a bias, and normalised."""
    write_policy(folder)
    tensors = load_file(folder / WEIGHT_FILE)
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    torch.manual_seed(1)
    tensors |= {f"{name}.weight": torch.randn(1, 16), f"{name}.bias": torch.tensor([bias])}
    save_file(tensors, folder / WEIGHT_FILE, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    extra = {"normalize_reward": True, "mean": 1.0, "std": 2.0, "value_head_prefix": name}
    (folder / "config.json").write_text(json.dumps(config | extra))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A source, the same in our layout, and answers with the scores that it gives them."""
    root = tmp_path_factory.mktemp("world")
    source = write_source(root / "source")
    ours = write_source(root / "ours", "score")
    tensors = load_file(ours / WEIGHT_FILE)
    del tensors["score.bias"]
    save_file(tensors, ours / WEIGHT_FILE, {"format": "pt"})
    config = json.loads((ours / "config.json").read_text()) | {"num_labels": 1}
    (ours / "config.json").write_text(json.dumps(config))
    # (head + 3 - 1) / 2
    write_sidecar(ours, ScorerSidecar(kind="cost", scale=0.5, bias=1.0))
    rng = np.random.default_rng(0)
    asked = [prompt for prompt in PROMPTS for _ in range(8)]
    answers = [" ".join(rng.choice(WORDS, 6)) for _ in asked]
    scores = AnswerScorer(ours, "cost").score(asked, answers)
    return {
        "root": root,
        "source": source,
        "policy": write_policy(root / "policy"),
        "asked": asked,
        "answers": answers,
        "scores": scores,
    }


def write_labels(path: Path, world: dict[str, Any], is_safe: np.ndarray) -> Path:
    rows = zip(world["asked"], world["answers"], is_safe.tolist(), strict=True)
    lines = [json.dumps({"prompt": p, "response": r, "is_safe": s}) for p, r, s in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_pairs(path: Path, world: dict[str, Any], *, turned: bool = False) -> Path:
    sign = -1 if turned else 1
    lines = []
    for row in range(0, len(world["asked"]), 2):
        first, other = sign * world["scores"][row], sign * world["scores"][row + 1]
        lines.append(
            {
                "prompt": world["asked"][row],
                "response_0": world["answers"][row],
                "response_1": world["answers"][row + 1],
                "better_response_id": int(other > first),
            }
        )
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def run(*arguments: object) -> int:
    return main(["scorer", *map(str, arguments)])


def test_a_cost_model_is_adopted_and_measured(
    world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, policy = world["scores"], world["policy"]
    boundary = float(np.quantile(scores, 0.6))
    labels = write_labels(tmp_path / "labels.jsonl", world, scores <= boundary)
    before = {file: file.read_bytes() for file in world["source"].iterdir()}
    out = tmp_path / "cost"
    given = (world["source"], "--kind", "cost", "--data", labels, "--out", out, "--policy", policy)
    given = (*given, "text.date=2024-01-01")
    assert run(*given) == 0
    said = capsys.readouterr().out
    assert "OpenRLHF, head value_head; score = 0.5 * head + 1" in said
    assert "sign_accuracy: " in said
    assert {file: file.read_bytes() for file in world["source"].iterdir()} == before
    assert sorted(tmp_path.iterdir()) == sorted([labels, out])

    sidecar = read_sidecar(out, kind="cost")
    assert (sidecar.scale, sidecar.bias) == (0.5, 1.0)
    # Labels that the scores made: the boundary is found up to the gap between two answers.
    assert sidecar.threshold == pytest.approx(boundary, abs=0.3 * scores.std())
    figures = sidecar.calibration
    assert figures["ranking_accuracy"] == 1.0
    assert figures["sign_accuracy"] > 0.85 > figures["sign_accuracy_before"]
    assert figures["num_answers"] + figures["placed_by"] == len(scores)
    assert figures["safe_q95"] < figures["unsafe_q50"]
    assert figures["safe_mean"] < propose_budget(out, 0.05) < figures["unsafe_mean"]

    assert run(*given) == 0
    assert "is there already" in capsys.readouterr().out
    assert run(*given, "--negate") == 3
    assert "was not made by this command" in capsys.readouterr().err
    # Ours is adopted anew: zero stays where it is, by the same labels.
    again = tmp_path / "again"
    assert run(out, "--kind", "cost", "--data", labels, "--out", again) == 0
    assert read_sidecar(again, kind="cost").threshold == pytest.approx(sidecar.threshold, abs=1e-4)
    # What lost its weights is not there already.
    next(out.glob("*.safetensors")).unlink()
    assert run(*given) == 3


def test_all_that_read_a_scorer_read_the_same(world: dict[str, Any], tmp_path: Path) -> None:
    scores = world["scores"]
    labels = write_labels(tmp_path / "labels.jsonl", world, scores <= np.median(scores))
    out, policy = tmp_path / "cost", world["policy"]
    assert run(world["source"], "--kind", "cost", "--data", labels, "--out", out) == 0
    check_models(policy, [(out, "cost")])
    expected = scores - read_sidecar(out, kind="cost").threshold
    scorer = AnswerScorer(out, "cost")
    np.testing.assert_allclose(
        scorer.score(world["asked"], world["answers"]), expected, rtol=0, atol=1e-5
    )
    ids = scorer.encode(world["asked"][:1], world["answers"][:1])[0]
    # The critic of `actors.learner` starts from the very same call.
    with torch.no_grad():
        critic = load_scorer(out, "cost", Accelerator("cpu", "float32"))(torch.tensor([ids]))
    assert float(critic[0, -1]) == pytest.approx(expected[0], abs=1e-5)
    worker = ScoringWorker(
        reward="",
        cost=str(out),
        reference=str(policy),
        device="cpu",
        dtype="float32",
        cpu_threads=1,
        max_tokens_per_batch=64,
        temperature=1.0,
    )
    rollout = Rollout(
        prompt_id="0",
        copy=0,
        category=Category.EHD,
        policy_version=0,
        token_ids=np.array(ids, np.int64),
        response_mask=np.arange(len(ids)) >= len(ids) - 2,
        rollout_log_probs=np.zeros(len(ids), np.float32),
        finish_reason=FinishReason.STOP,
    )
    assert worker.score([rollout])[0].cost == pytest.approx(expected[0], abs=1e-5)


def test_a_reward_model_is_measured_on_all_pairs(world: dict[str, Any], tmp_path: Path) -> None:
    pairs, out = write_pairs(tmp_path / "pairs.jsonl", world), tmp_path / "reward"
    assert run(world["source"], "--kind", "reward", "--data", pairs, "--out", out) == 0
    sidecar = read_sidecar(out, kind="reward")
    assert sidecar.threshold == 0.0
    assert sidecar.calibration["ranking_accuracy"] == 1.0
    assert sidecar.calibration["num_pairs"] == len(world["asked"]) / 2


def test_for_a_policy_with_other_tokens_it_is_measured_in_its_own(
    world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, other = write_pairs(tmp_path / "pairs.jsonl", world), write_other_policy(tmp_path / "p")
    given = (world["source"], "--kind", "reward", "--data", pairs)
    assert run(*given, "--out", tmp_path / "alone") == 0
    capsys.readouterr()
    assert run(*given, "--out", tmp_path / "reward", "--policy", other) == 0
    assert "in tokens of its own" in (said := capsys.readouterr().out)
    assert "is 'lamp' there, 'lampe' here" in said
    assert read_heads(tmp_path / "reward") == read_heads(tmp_path / "alone")


def test_a_model_that_is_turned_round_is_named_and_turned_by_asking(
    world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, out = write_pairs(tmp_path / "pairs.jsonl", world, turned=True), tmp_path / "reward"
    given = (world["source"], "--kind", "reward", "--data", pairs, "--out", out)
    assert run(*given) == 3
    assert "higher in 0% of 100 cases, no better than chance" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [pairs]
    assert run(*given, "--negate") == 0
    assert read_sidecar(out, kind="reward").calibration["ranking_accuracy"] == 1.0


def test_wrong_things_are_refused_before_a_weight_is_written(
    world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything_safe = write_labels(tmp_path / "safe.jsonl", world, np.full(len(PROMPTS) * 8, True))
    pairs = write_pairs(tmp_path / "pairs.jsonl", world)
    other = write_other_policy(tmp_path / "other")
    bare = write_source(tmp_path / "bare")
    for file in bare.glob("token*"):
        file.unlink()
    out = tmp_path / "out"
    for source, kind, data, more, message in [
        (world["source"], "cost", everything_safe, (), "holds no unsafe answer"),
        (world["source"], "reward", everything_safe, (), f"{everything_safe}: column 'response_0'"),
        (world["source"], "cost", pairs, (), f"{pairs}: column 'safer_response_id'"),
        (world["source"], "reward", pairs, ("--policy", bare), "bare: has no tokenizer"),
        (bare, "reward", pairs, (), "holds no tokenizer"),
        (other, "reward", pairs, (), "holds no head that gives a score"),
        (world["source"], "reward", pairs, ("--label", "good"), "has one label"),
    ]:
        given = (source, "--kind", kind, "--data", data, "--out", out, *more)
        assert run(*given) == 3, message
        assert message in capsys.readouterr().err
        assert not out.exists()
    assert run(world["source"], "max_lenght=9", "--kind", "reward", "--data", pairs) == 2
    assert "max_length" in capsys.readouterr().err
    assert run(world["source"], "fdc.amounts={EHD: 9}", "--kind", "reward", "--data", pairs) == 2
    assert "'fdc.amounts.EHD') is unknown" in capsys.readouterr().err
    inside = ("--kind", "reward", "--data", pairs, "--out", world["source"] / "new")
    assert run(world["source"], *inside) == 3
    assert "which is only read" in capsys.readouterr().err
