"""The learner with real DeepSpeed engines and process groups, on CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from actors.engine import DeepSpeedModel
from actors.learner import LearnerWorker
from equilibrate.config.train import AmaConfig, PPOConfig
from equilibrate.errors import ParityError
from equilibrate.learning.passes import Passes
from equilibrate.types import Category, ScoredRollout
from tests.integration.learners import (
    NUM_ROLLOUTS,
    assert_equal,
    free_port,
    largest_difference,
    make_settings,
    score_rollouts,
    set_rank,
    snapshot,
    step_error,
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


ADAPTER: dict[str, Any] = {"adapter": {"rank": 4, "alpha": 8}}
TWO_HEADS: dict[str, Any] = {"two_headed_critic": True}
AGAIN = {"activation_checkpointing": True}
ONE_STEP: dict[str, Any] = {"minibatch_size": NUM_ROLLOUTS, "epochs": 1}
WAYS: dict[str, dict[str, Any]] = {
    **{f"stage{stage}": {"learner": {"zero_stage": stage}} for stage in (0, 1, 2, 3)},
    "critic-free": {"reward": "", "cost": "", "ppo": {"advantage": "reinforce_plus_plus"}},
    "sequences": {"ppo": {"mean_over": "sequences"}},
    **{
        f"one-pass{stage}": {
            "learner": {"zero_stage": stage, "max_tokens_per_batch": 1024},
            "ppo": ONE_STEP,
        }
        for stage in (0, 2, 3)
    },
    **{f"adapter{stage}": {"learner": {"zero_stage": stage, **ADAPTER}} for stage in (0, 1, 2, 3)},
    **{f"again{stage}": {"learner": {"zero_stage": stage, **AGAIN}} for stage in (0, 2, 3)},
    **{
        f"adapter-again{stage}": {"learner": {"zero_stage": stage, **AGAIN, **ADAPTER}}
        for stage in (0, 3)
    },
    **{f"two-heads{stage}": {"learner": {"zero_stage": stage, **TWO_HEADS}} for stage in (0, 2, 3)},
}
"""Settings whose result two ranks must share with one that has the tests' own learner settings:
ZeRO stages, no critics, means over sequences, outputs of the pass before that are differentiated,
adapters, activations that are computed again, and one critic for two values."""
MODELS = (*ADAPTER, *TWO_HEADS)
"""What of a learner's settings says which weights there are."""


RANKS = {
    2: tuple(WAYS),
    4: ("stage1", "stage2", "stage3", "critic-free", "adapter-again3", "two-heads3"),
}
"""How many ranks, and in which ways."""


def run_rank(rank: int, num_ranks: int, port: int, models: Path, out: Path) -> None:
    """In a process of its own: one of the ranks, in each way in turn."""
    set_rank(rank, num_ranks, port)
    scored = score_rollouts(models)
    for name in RANKS[num_ranks]:
        worker = LearnerWorker(make_settings(models, **WAYS[name]))
        metrics = update(worker, scored)
        weights = snapshot(worker)
        if rank == 0:
            np.savez(out / f"{name}.npz", **weights)  # type: ignore[arg-type]
            np.savez(out / f"metrics-{name}.npz", **metrics.values)


@pytest.mark.parametrize("num_ranks", RANKS)
def test_ranks_and_zero_stages_do_not_change_the_result(
    num_ranks: int, models: Path, scored: list[ScoredRollout], tmp_path: Path
) -> None:
    arguments = (num_ranks, free_port(), models, tmp_path)
    spawn(run_rank, arguments, nprocs=num_ranks)  # type: ignore[no-untyped-call]
    for name in RANKS[num_ranks]:
        changes = WAYS[name]
        one_rank = {k: v for k, v in changes.items() if k != "learner"}
        learner = changes.get("learner", {})
        one_rank["learner"] = {key: learner[key] for key in MODELS if key in learner}
        worker = LearnerWorker(make_settings(models, **one_rank))
        before, metrics, alone = snapshot(worker), update(worker, scored), snapshot(worker)
        assert largest_difference(before, alone) > 1e-4
        # Rounding makes 1e-4 to 5e-4; one reward that is off by 0.01 makes 6e-2.
        with np.load(tmp_path / f"{name}.npz") as weights:
            assert step_error(before, alone, dict(weights)) < 5e-3, name
        with np.load(tmp_path / f"metrics-{name}.npz") as values:
            assert dict(values) == pytest.approx(dict(metrics.values), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("stage", [0, 3])
def test_small_gradients_move_little_under_a_large_epsilon(
    models: Path, scored: list[ScoredRollout], stage: int
) -> None:
    # Adam's first step is lr * g / (|g| + epsilon), and no |g| is above 1, the largest norm.
    learner = {"adam_epsilon": 9.0, "zero_stage": stage}
    ppo = {"minibatch_size": len(scored), "epochs": 1}
    worker = LearnerWorker(make_settings(models, learner=learner, ppo=ppo))
    before = snapshot(worker)
    update(worker, scored)
    moved = {name: np.abs(value - before[name]).max() for name, value in snapshot(worker).items()}
    for role, rate in (("policy", 1e-4), ("critic", 5e-4), ("cost_critic", 5e-4)):
        largest = max(change for name, change in moved.items() if name.startswith(f"{role}/"))
        assert 0 < largest <= 0.1 * rate * (1 + 1e-3), role


@pytest.mark.parametrize(
    "way",
    [
        *("stage0", "stage2", "stage3", "critic-free", "two-heads0", "two-heads3"),
        *("adapter0", "adapter2", "adapter3"),
    ],
)
def test_loading_continues_bit_by_bit(
    models: Path, scored: list[ScoredRollout], tmp_path: Path, way: str
) -> None:
    changes = WAYS[way]
    learner = {**changes.get("learner", {}), "lr_schedule": "cosine"}
    settings = make_settings(models, **{**changes, "learner": learner}, parity_tolerance=10.0)
    straight = LearnerWorker(settings)
    update(straight, scored, iteration=0)
    straight.save(tmp_path)
    expected = update(straight, scored, iteration=1)

    resumed = LearnerWorker(settings)
    resumed.load(tmp_path)
    metrics = update(resumed, scored, iteration=1)
    assert dict(metrics.values) == dict(expected.values)
    assert_equal(snapshot(resumed), snapshot(straight))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_loading_goes_back_in_a_running_learner(
    models: Path, scored: list[ScoredRollout], tmp_path: Path, stage: int
) -> None:
    settings = make_settings(models, learner={"zero_stage": stage}, parity_tolerance=10.0)
    worker = LearnerWorker(settings)
    update(worker, scored, iteration=0)
    worker.save(tmp_path)
    expected = update(worker, scored, iteration=1)
    reached = snapshot(worker)
    update(worker, scored, iteration=2)
    worker.load(tmp_path)
    assert dict(update(worker, scored, iteration=1).values) == dict(expected.values)
    assert_equal(snapshot(worker), reached)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_broken_minibatch_leaves_nothing_behind(
    models: Path, scored: list[ScoredRollout], monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    settings = make_settings(models, learner={"zero_stage": stage})
    worker = LearnerWorker(settings)
    before = snapshot(worker)
    answers = iter([True] * 7 + [False])
    with monkeypatch.context() as patch:
        # Two micro-batches of three models have been learned from when the third goes wrong.
        patch.setattr(Passes, "all_finite", lambda self, loss: next(answers))
        assert update(worker, scored).skipped
    assert_equal(snapshot(worker), before)
    fresh = LearnerWorker(settings)
    assert not update(worker, scored).skipped
    update(fresh, scored)
    assert_equal(snapshot(worker), snapshot(fresh))


@pytest.mark.parametrize("stage", [0, 3])
def test_single_step_asks_every_model_once(
    models: Path, scored: list[ScoredRollout], monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    asked: list[DeepSpeedModel] = []
    ask = DeepSpeedModel.__call__

    def count(model: DeepSpeedModel, *inputs: Any) -> Any:
        asked.append(model)
        return ask(model, *inputs)

    monkeypatch.setattr(DeepSpeedModel, "__call__", count)
    learner = {"zero_stage": stage, "max_tokens_per_batch": 1024}
    worker, fresh = (
        LearnerWorker(make_settings(models, ppo=ONE_STEP, learner=learner)) for _ in range(2)
    )
    off = scored[0].rollout.rollout_log_probs + np.float32(1e-3)
    wrong = [replace(scored[0], rollout=replace(scored[0].rollout, rollout_log_probs=off))]
    with pytest.raises(ParityError):
        # Leaves outputs that are never differentiated.
        update(worker, [*wrong, *scored[1:]])
    asked.clear()
    update(worker, scored)
    assert asked == list(worker._models.values())
    update(fresh, scored)
    assert_equal(snapshot(worker), snapshot(fresh))
    small = make_settings(models, ppo=ONE_STEP, learner={**learner, "max_tokens_per_batch": 512})
    asked.clear()
    # 16 rows of at most 13 tokens fit, three models of them do not.
    update(LearnerWorker(small), scored)
    assert len(asked) == 6


@pytest.mark.parametrize("way", ["stage0", "one-pass0", "critic-free"])
def test_broken_score_leaves_one_rollout_out(
    models: Path, scored: list[ScoredRollout], way: str
) -> None:
    reached = []
    for broken in ({"reward": float("nan")}, {"cost": float("inf")}):
        worker = LearnerWorker(make_settings(models, **WAYS[way]))
        metrics = update(worker, [replace(scored[0], **broken), *scored[1:]])
        assert not metrics.skipped
        others = sum(int(s.rollout.response_mask.sum()) for s in scored[1:])
        assert metrics.values["num_tokens"] == others
        reached.append(snapshot(worker))
    assert_equal(*reached)


def test_scores_that_are_all_broken_skip_the_update(
    models: Path, scored: list[ScoredRollout]
) -> None:
    worker = LearnerWorker(make_settings(models))
    before = snapshot(worker)
    assert update(worker, [replace(s, reward=float("nan")) for s in scored]).skipped
    assert_equal(snapshot(worker), before)


def test_gradient_that_is_not_finite_is_not_applied(
    models: Path, scored: list[ScoredRollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = LearnerWorker(make_settings(models))
    before = snapshot(worker)
    policy = worker._policy
    learn = policy.backward
    monkeypatch.setattr(
        policy, "backward", lambda loss, is_last: learn(loss * float("inf"), is_last=is_last)
    )
    assert update(worker, scored).skipped
    assert_equal(snapshot(worker), before, only="policy")


def test_parity_violation_raises_before_anything_moves(
    models: Path, scored: list[ScoredRollout]
) -> None:
    worker = LearnerWorker(make_settings(models))
    before = snapshot(worker)
    off = scored[0].rollout.rollout_log_probs + np.float32(1e-3)
    wrong = [replace(scored[0], rollout=replace(scored[0].rollout, rollout_log_probs=off))]
    with pytest.raises(ParityError, match=r"1\.0\de-03 nats"):
        update(worker, [*wrong, *scored[1:]])
    assert_equal(snapshot(worker), before)


def test_plain_ppo_has_no_cost_critic_and_ignores_the_multiplier(
    models: Path, scored: list[ScoredRollout]
) -> None:
    plain = LearnerWorker(make_settings(models, cost="", ama=None))
    metrics = update(plain, scored)
    assert plain._models.keys() == {"policy", "critic"}
    assert "cost_value_loss" not in metrics.values
    other = LearnerWorker(make_settings(models, cost="", ama=None))
    other.update(scored, iteration=0, multiplier=0.0, kl_coef=0.1)
    assert_equal(snapshot(plain), snapshot(other))


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "reinforce_plus_plus"])
def test_without_critics_the_policy_learns_and_heeds_the_multiplier(
    advantage: str, models: Path, scored: list[ScoredRollout]
) -> None:
    pairs = [
        replace(s, rollout=replace(s.rollout, prompt_id=str(i // 2))) for i, s in enumerate(scored)
    ]
    settings = make_settings(models, reward="", cost="", ppo={"advantage": advantage})
    worker = LearnerWorker(settings)
    before = snapshot(worker)
    metrics = update(worker, pairs)
    assert worker._models.keys() == {"policy"}
    assert not metrics.skipped
    assert {"value_loss", "cost_value_loss"}.isdisjoint(metrics.values)
    assert any((value != before[name]).any() for name, value in snapshot(worker).items())
    other = LearnerWorker(settings)
    other.update(pairs, iteration=0, multiplier=0.0, kl_coef=0.1)
    moved = zip(snapshot(worker).values(), snapshot(other).values(), strict=True)
    assert any((one != two).any() for one, two in moved)


def test_ama_off_equals_a_gate_that_lets_every_class_through(
    models: Path, scored: list[ScoredRollout]
) -> None:
    off = LearnerWorker(make_settings(models, ama=None))
    gated = LearnerWorker(make_settings(models, ama=AmaConfig(ungated=tuple(Category))))
    metrics = update(off, scored)
    assert metrics.values["kept_fraction"] == 1.0
    assert dict(update(gated, scored).values) == dict(metrics.values)
    assert_equal(snapshot(off), snapshot(gated))
    masked = update(LearnerWorker(make_settings(models)), scored)
    assert 0.0 < masked.values["kept_fraction"] < 1.0


def test_fully_masked_batch_moves_the_critics_alone(
    models: Path, scored: list[ScoredRollout]
) -> None:
    worker = LearnerWorker(make_settings(models, ama=AmaConfig(source="reward")))
    update(worker, scored)  # leaves momentum behind
    before = snapshot(worker)
    # Equal prefix scores: every step is 0, which agrees with no side.
    flat = [replace(s, token_rewards=np.zeros_like(s.token_rewards)) for s in scored]
    worker._settings = replace(worker._settings, parity_tolerance=10.0)
    metrics = update(worker, flat, iteration=1)
    after = snapshot(worker)
    assert metrics.values["kept_fraction"] == 0.0
    assert_equal(after, before, only="policy")
    for role in ("critic", "cost_critic"):
        names = [name for name in before if name.startswith(role + "/")]
        assert any((before[name] != after[name]).any() for name in names)


def test_fully_masked_batch_without_critics_moves_nothing(
    models: Path, scored: list[ScoredRollout]
) -> None:
    ama = AmaConfig(source="reward")
    worker = LearnerWorker(make_settings(models, **WAYS["critic-free"], ama=ama))
    before = snapshot(worker)
    flat = [replace(s, token_rewards=np.zeros_like(s.token_rewards)) for s in scored]
    metrics = update(worker, flat)
    assert not metrics.skipped
    assert metrics.values["kept_fraction"] == 0.0
    assert_equal(snapshot(worker), before)


def test_bfloat16_learns_close_to_float32(models: Path, scored: list[ScoredRollout]) -> None:
    settings = make_settings(models, dtype="bfloat16", parity_tolerance=None)
    weighed = replace(settings, ppo=PPOConfig(**dict(settings.ppo) | {"importance": "always"}))
    narrow, wide = LearnerWorker(settings), LearnerWorker(make_settings(models))
    metrics = update(narrow, scored)
    update(wide, scored)
    assert not metrics.skipped
    assert "importance_weight" not in metrics.values
    assert update(LearnerWorker(weighed), scored).values["importance_weight"] != 1.0
    assert 1e-5 < metrics.values["parity_gap_nats"] < 0.1
    weights = snapshot(narrow)
    assert all(weight.dtype == np.float32 for weight in weights.values())
    assert 0.0 < largest_difference(weights, snapshot(wide)) < 0.01


def test_pretraining_text_moves_the_policy_on_its_own(
    models: Path, scored: list[ScoredRollout], tmp_path: Path
) -> None:
    from datasets import Dataset

    rows = {"prompt": ["w5", "w6"], "response": ["w7", "w8"]}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path))
    worker = LearnerWorker(
        make_settings(
            models, learner={"ptx_coef": 1.0}, ptx=str(tmp_path), ama=AmaConfig(source="reward")
        )
    )
    before = snapshot(worker)
    flat = [replace(s, token_rewards=np.zeros_like(s.token_rewards)) for s in scored]
    losses = [update(worker, flat).values["ptx_loss"]]
    worker._settings = replace(worker._settings, parity_tolerance=10.0)
    losses.append(update(worker, flat, iteration=1).values["ptx_loss"])
    assert losses[0] > losses[1] > 0.0
    assert largest_difference(before, snapshot(worker)) > 1e-4


def test_random_state_of_the_rank_is_restored(models: Path, tmp_path: Path) -> None:
    worker = LearnerWorker(make_settings(models))
    worker.save(tmp_path)
    first = torch.rand(())
    worker.load(tmp_path)
    assert torch.rand(()) == first
