"""A Python function as the reward model, in the scoring pool and under a real learner's critic."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from transformers import AutoTokenizer

from actors.groups import WorkerGroups
from actors.learner import LearnerWorker
from actors.prepare import Inputs
from equilibrate.config.base import JudgeConfig
from equilibrate.config.files import parse_settings
from equilibrate.config.inputs import plain
from equilibrate.config.train import TrainConfig
from equilibrate.errors import DataError
from equilibrate.evaluation import RefusalMatcher
from equilibrate.evaluation.judge_plugins import load_judge
from equilibrate.run.judging import in_pool
from equilibrate.types import Category, Message, Prompt, ScoredRollout
from tests.integration.learners import make_settings, update

pytestmark = [
    pytest.mark.timeout(240),
    *(
        pytest.mark.filterwarnings(f"ignore::{kind}Warning")
        for kind in ("Future", "User", "Deprecation", "Resource")
    ),
]

FUNCTIONS = """
def words(conversations):
    return [len(one["response"].split()) / len(one["messages"]) for one in conversations]

def fails(conversations):
    raise RuntimeError("no service")
"""


@pytest.fixture
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="test-sources")
    yield
    ray.shutdown()


def groups_with(models: Path, output: Path, name: str) -> WorkerGroups:
    source = output / "mine.py"
    source.write_text(FUNCTIONS)
    config = parse_settings(
        TrainConfig,
        {
            "output": str(output / "run"),
            "scoring": {"num_workers": 2, "cpus": 0.5, "max_tokens_per_batch": 64},
            "phase_seconds": {"score": 100},
        },
    )
    inputs = Inputs(
        policy=models / "policy",
        reward=f"{source}:{name}",
        cost=models / "cost",
        ptx=None,
        evaluation=(),
        judge=RefusalMatcher(),
        more_rewards=[(str(models / "reward"), 2.0)],
        prompts=plain(Path("prompts")),
    )
    return WorkerGroups(config, inputs, roles=("scoring",))


@pytest.mark.usefixtures("cluster")
def test_the_pool_scores_by_a_function_beside_a_model(
    models: Path, scored: list[ScoredRollout], tmp_path: Path
) -> None:
    turn = Message(role="user", content="how ?")
    rollouts = [
        replace(one.rollout, messages=(turn,) * (1 + row % 2)) for row, one in enumerate(scored)
    ]
    with groups_with(models, tmp_path, "words") as groups:
        found = groups.scorer.score(rollouts)
    for row, (one, before) in enumerate(zip(found, scored, strict=True)):
        # Every token of this vocabulary is a word.
        words = int(one.rollout.response_mask.sum()) / (1 + row % 2)
        assert one.reward == pytest.approx(words + 2 * before.reward, abs=1e-4)
        np.testing.assert_allclose(one.token_rewards[:-1], 2 * before.token_rewards[:-1], atol=1e-4)
        assert one.cost == pytest.approx(before.cost, abs=1e-5)
    with (
        groups_with(models, tmp_path, "fails") as groups,
        pytest.raises(
            DataError, match=r"mine\.py:fails: RuntimeError \(no service\).* of answer 0"
        ),
    ):
        groups.scorer.score(rollouts)


@pytest.mark.usefixtures("cluster")
def test_the_pool_judges_as_the_driver_would(models: Path, tmp_path: Path) -> None:
    for kind in ("reward", "cost"):
        shutil.copytree(models / kind, tmp_path / kind)
        AutoTokenizer.from_pretrained(models / "policy").save_pretrained(tmp_path / kind)
    options = {"folder": str(tmp_path / "cost"), "reward": str(tmp_path / "reward")}
    config, judge = (
        JudgeConfig(name="cost_model", options=options),
        load_judge("cost_model", **options),
    )
    prompts = [
        Prompt(prompt_id=str(row), text=f"w{row + 4}", token_ids=(1,), category=Category.EHD)
        for row in range(9)
    ]
    said = [" ".join(f"w{4 + (row * step) % 30}" for step in range(5)) for row in range(9)]
    expected = judge.judge(prompts, said)
    assert len({verdict.helpfulness for verdict in expected}) > 5
    with groups_with(models, tmp_path, "words") as groups:
        found = in_pool(judge, config, groups.scorer, at_once=4).judge(prompts, said)
    assert [verdict.harmful for verdict in found] == [verdict.harmful for verdict in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.helpfulness == pytest.approx(other.helpfulness, abs=1e-5)


@pytest.mark.usefixtures("group_of_one")
def test_its_critic_starts_as_the_policy(models: Path, scored: list[ScoredRollout]) -> None:
    worker = LearnerWorker(make_settings(models, reward="mine.py:words"))
    trunks = [
        {
            name.rpartition("model.")[2]: tensor.numpy().copy()
            for name, tensor in worker._models[role].named_weights()
        }
        for role in ("policy", "critic")
    ]
    shared = trunks[0].keys() & trunks[1].keys()
    assert len(shared) > 10
    for name in shared:
        np.testing.assert_array_equal(trunks[0][name], trunks[1][name])
    head = next(tensor for name, tensor in trunks[1].items() if name not in shared)
    assert 0 < np.abs(head).max() < 0.2
    assert not update(worker, scored).skipped
