"""Which runs of a study may use the processes of the one before. Nothing is started here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.groups import WorkerGroups
from actors.pools import Watch
from actors.prepare import FitInputs, Inputs
from actors.workbench import Workbench
from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.inputs import plain
from equilibrate.config.train import TrainConfig
from equilibrate.evaluation import RefusalMatcher

MODELS: dict[str, Any] = {
    "policy": Path("policy"),
    "reward": Path("reward"),
    "cost": Path("cost"),
    "ptx": None,
    "evaluation": (),
}
PPO = Inputs(**MODELS, judge=RefusalMatcher(), prompts=plain(Path("prompts")))
OFFLINE = FitInputs(**MODELS, judge=RefusalMatcher(), train=(), prompts=())


def ppo(**changes: Any) -> TrainConfig:
    return parse_settings(TrainConfig, {"output": "runs/a", **changes})


def offline(**changes: Any) -> FitConfig:
    tree = {"output": "runs/a", "fdc": {"amounts": {"GENERAL": 8}}}
    return parse_settings(FitConfig, {**tree, **changes})


@pytest.mark.parametrize(
    ("changes", "suits"),
    [
        ({"output": "runs/b"}, True),
        ({"learner": {"policy_lr": 1e-3}}, True),
        ({"constraint": {"budget": -1.0}, "ama": {}, "iterations": 3}, True),
        ({"learner": {"num_workers": 2}}, False),  # needs more room than there is
        ({"rollout": {"prompts_per_iteration": 96, "max_policy_lag": 1}}, True),
        ({"rollout": {"temperature": 0.5}}, False),
        ({"scoring": {"max_tokens_per_batch": 64}}, False),
        ({"seed": 1}, False),
        ({"dtype": "bfloat16"}, False),
    ],
)
def test_settings_of_the_same_processes(changes: dict[str, Any], suits: bool) -> None:
    assert Workbench(ppo(), PPO).suits(ppo(**changes), PPO) is suits


def test_other_rewards_are_other_processes() -> None:
    more = replace(PPO, more_rewards=[("length.py:brief", 0.5)])
    assert Workbench(ppo(), more).suits(ppo(), more)
    assert not Workbench(ppo(), PPO).suits(ppo(), more)


class Pool:
    def renew(self, watch: Watch, max_restarts: int) -> None:
        self.renewed = watch.folder.name, max_restarts


@pytest.mark.parametrize("make", [ppo, offline])
def test_what_a_run_leaves_goes_to_its_own_folder(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever run the processes were started for."""
    monkeypatch.chdir(tmp_path)
    bench, pool, learner = Workbench(make(), PPO), Pool(), Pool()
    parts: Any = pool, learner
    groups = WorkerGroups(make(), PPO, roles=("rollout", *(["learner"] if make is ppo else [])))
    groups._pools, groups.learner = [parts[0]], parts[1]
    bench._groups = groups
    bench.turn_to(make(output="runs/b", max_restarts=4))
    assert pool.renewed == ("b", 4)
    assert getattr(learner, "renewed", None) == (("b", 4) if make is ppo else None)
    assert len(list(tmp_path.glob("runs/b/.nonce-*"))) == 1


def test_models_of_the_same_processes() -> None:
    bench, other = Workbench(ppo(), PPO), Path("other")
    assert bench.suits(ppo(), replace(PPO, prompts=other, evaluation=other))
    for name in ("policy", "reward", "cost", "ptx"):
        assert not bench.suits(ppo(), replace(PPO, **{name: other}))


def test_offline_runs_share_a_generator_whatever_they_are_scored_by() -> None:
    bench, other = Workbench(offline(), OFFLINE), Path("other")
    assert bench.suits(offline(lr=1e-3), replace(OFFLINE, reward=other, cost=None))
    assert not bench.suits(offline(), replace(OFFLINE, policy=other))
    assert not bench.suits(ppo(), PPO)
