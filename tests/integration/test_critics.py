"""Critics that share a trunk, with each other or with the policy, on CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.learner import LearnerWorker
from equilibrate.models.device import Accelerator
from equilibrate.models.new_scorer import new_twin_scorer
from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from equilibrate.text.renderer import load_tokenizer
from equilibrate.types import ScoredRollout
from tests.integration.learners import largest_difference, make_settings, snapshot, update
from tests.integration.test_learner import ADAPTER, ONE_STEP, TWO_HEADS

pytestmark = [
    pytest.mark.usefixtures("group_of_one"),
    pytest.mark.timeout(600),
    *(
        pytest.mark.filterwarnings(f"ignore::{kind}Warning")
        for kind in ("Future", "User", "Deprecation", "Resource")
    ),
]


def test_one_critic_of_two_heads_is_worth_two(
    models: Path, scored: list[ScoredRollout], tmp_path: Path
) -> None:
    """From a scorer of two heads both begin at the same values, so the policy learns the same."""
    folder, cpu = tmp_path / "both", Accelerator("cpu", "float32")
    twins = new_twin_scorer(models / "policy", ("reward", "cost"), cpu, seed=5, pad_token_id=0)
    twins.model.save_pretrained(folder)
    load_tokenizer(models / "policy").save_pretrained(folder)
    heads = (ScorerSidecar(kind="reward", scale=2.0), ScorerSidecar(kind="cost", bias=0.5))
    write_sidecar(folder, *heads)
    ways: dict[str, dict[str, Any]] = {
        "two": {"reward": str(folder), "cost": str(folder)},
        "one": {"reward": str(folder), "cost": str(folder), "learner": TWO_HEADS},
        # From scorers that are two models it starts as the policy, with heads of its own.
        "fresh": {"learner": TWO_HEADS},
    }
    workers = {
        name: LearnerWorker(make_settings(models, ppo=ONE_STEP, **way))
        for name, way in ways.items()
    }
    begun = {name: snapshot(worker) for name, worker in workers.items()}
    metrics = {name: dict(update(worker, scored).values) for name, worker in workers.items()}
    assert workers["one"]._models.keys() == workers["fresh"]._models.keys() == {"policy", "critic"}
    for name in metrics["two"]:
        assert metrics["one"][name] == pytest.approx(metrics["two"][name], rel=1e-4), name
    assert metrics["fresh"]["value_loss"] != pytest.approx(metrics["two"]["value_loss"], rel=1e-2)
    one, two = (
        {name: value for name, value in snapshot(workers[way]).items() if "policy/" in name}
        for way in ("one", "two")
    )
    assert largest_difference(one, two) < 1e-6
    trunk = "model.model.embed_tokens.weight"
    np.testing.assert_array_equal(
        begun["fresh"][f"critic/{trunk}"], begun["fresh"][f"policy/{trunk}"]
    )
    assert begun["fresh"]["critic/model.score.weight"].shape[0] == 2


@pytest.mark.parametrize(("stage", "is_shared"), [(0, True), (2, True), (3, False)])
def test_adapters_of_one_trunk_hold_it_once(
    models: Path,
    scored: list[ScoredRollout],
    stage: int,
    is_shared: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And learn what they do where each has its own (ZeRO-3)."""
    learner = {"zero_stage": stage, **ADAPTER, **TWO_HEADS}
    with monkeypatch.context() as patch:
        if not is_shared:
            patch.setattr("actors.learner.share_frozen", None)  # is not asked
        worker = LearnerWorker(make_settings(models, learner=learner))
    metrics = update(worker, scored)
    held = {parameter.data_ptr() for parameter in worker._policy.module.parameters()}
    critic = worker._models["critic"].module
    apart = [p for p in critic.parameters() if not p.requires_grad and p.data_ptr() not in held]
    assert bool(apart) != is_shared
    if stage:
        own = LearnerWorker(make_settings(models, learner={**learner, "zero_stage": 0}))
        assert dict(update(own, scored).values) == pytest.approx(dict(metrics.values), rel=1e-4)
