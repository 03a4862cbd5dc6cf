"""Shares and limits of an iteration by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.driver_cost import NoCheckpoints, growth
from benchmarks.end_to_end import claimed_shares, limit_seconds, phase_shares
from benchmarks.limits import ModelShape, Roof, shape_of
from benchmarks.stubs import StubWorker
from benchmarks.workloads import ModelFolders, make_prompts, make_rollouts, write_models
from equilibrate.config.train import PPOConfig
from equilibrate.types import Category, RolloutRequest

SECONDS = [
    {"rollout": 4.0, "score": 1.0, "update": 3.0, "sync": 1.0, "iteration": 10.0},
    {"rollout": 8.0, "score": 4.0, "update": 5.0, "sync": 2.0, "iteration": 20.0},
]
SHAPE = ModelShape(num_parameters=100, num_layers=1, hidden_size=4, intermediate_size=8, kv_width=2)


def test_what_nobody_claims_is_missing_from_the_share() -> None:
    # 9 of 10 and 19 of 20.
    assert claimed_shares(SECONDS) == [0.9, 0.95]


def test_phase_shares_are_medians_over_iterations() -> None:
    # Two values each: rollout 0.4 and 0.4, score 0.1 and 0.2, update 0.3 and 0.25, sync 0.1 twice.
    assert phase_shares(SECONDS) == pytest.approx(
        {"rollout": 0.4, "score": 0.15, "update": 0.275, "sync": 0.1}
    )


@pytest.mark.parametrize(
    ("constraint", "has_critics", "passes"),
    # Two steps. 2 N D a forward pass, 6 N D a training: without critics (1 + 3) x 2 + 6.
    [("pid", True, 30), (None, True, 20), ("pid", False, 14)],
)
def test_limit_of_an_iteration(constraint: str | None, has_critics: bool, passes: int) -> None:
    config = SimpleNamespace(
        rollouts_per_iteration=2,
        constraint=constraint,
        ppo=PPOConfig(minibatch_size=1, advantage="gae" if has_critics else "rloo"),
    )
    roof = Roof(flops_per_second=1000.0, bytes_per_second=1e12)
    # 2 rollouts of 3 + 1 tokens: prefill 2 x 100 x 6 / 1000 = 1.2 s, then all passes over 8 tokens;
    # sync is as good as free.
    expected = 1.2 + passes * 100 * 8 / 1000
    assert limit_seconds(SHAPE, roof, config, (3, 1)) == pytest.approx(expected)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelFolders:
    return write_models(tmp_path_factory.mktemp("models"))


def test_shape_is_that_of_the_folder(models: ModelFolders) -> None:
    shape = shape_of(models.policy)
    # 4 heads of 32 on 4 layers: 2 x 4 x 128 x 4 bytes of keys and values per token.
    assert shape.kv_bytes_per_token == 4096
    # The file holds each shared parameter once; its header is small.
    file = Path(models.policy) / "model.safetensors"
    assert 0 < file.stat().st_size - shape.num_bytes < 20_000


def test_prompts_cover_the_classes_in_turn(models: ModelFolders) -> None:
    prompts = make_prompts(models.policy, 7)
    assert [p.category for p in prompts] == [*Category, *list(Category)[:2]]
    assert len({p.token_ids for p in prompts}) == 7


def test_responses_have_lengths_within_bounds_and_repeat(models: ModelFolders) -> None:
    prompts = make_prompts(models.policy, 50)
    sizes = {"vocabulary": 30, "min_tokens": 2, "max_tokens": 4}
    rollouts = make_rollouts(prompts, **sizes)
    assert {int(r.response_mask.sum()) for r in rollouts} == {2, 3, 4}
    again = make_rollouts(prompts, **sizes)
    assert all((a.token_ids == b.token_ids).all() for a, b in zip(rollouts, again, strict=True))


REQUESTS = [
    RolloutRequest(
        prompt_id=f"p{i}", copy=0, category=Category.EHD, token_ids=(1,) * (i + 1), seed=i
    )
    for i in range(3)
]


def test_growth_is_most_over_fewest_whatever_the_order() -> None:
    assert growth({64: 0.03, 1: 0.01, 8: 0.5}) == 0.03 / 0.01


def test_stubs_answer_like_workers() -> None:
    seconds = dict.fromkeys(("rollout", "score", "update", "sync"), 0.0)
    stub = StubWorker(seconds, response_tokens=4, weight_bytes=10)
    rollouts = stub.generate(REQUESTS, policy_version=5)
    assert [r.prompt_id for r in rollouts] == ["p0", "p1", "p2"]
    assert [len(r.token_ids) for r in rollouts] == [5, 6, 7]
    assert all(r.response_mask.sum() == 4 and r.policy_version == 5 for r in rollouts)
    scored = stub.score(rollouts)
    assert [s.rollout for s in scored] == rollouts
    assert not stub.update(scored, iteration=0, multiplier=1.0, kl_coef=0.1).skipped
    weights, receipt = stub.pack_weights()
    assert isinstance(weights, np.ndarray)
    assert (weights.nbytes, receipt) == (10, 0)


def test_the_loop_goes_on_where_it_stopped() -> None:
    checkpoints = NoCheckpoints()
    assert checkpoints.restore() == 0
    checkpoints.save(3)
    assert checkpoints.restore() == 3
