from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from equilibrate.config.base import WorkerGroup
from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ResourceError
from equilibrate.run import capacity
from equilibrate.run.capacity import (
    Demand,
    check_capacity,
    check_this_machine,
    machine_memory,
    total_of,
)

NODES = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "fast": 1.0}]


def demand(
    name: str, num_workers: int, cpus: float, gpus: float = 0.0, **resources: float
) -> Demand:
    group = WorkerGroup(num_workers=num_workers, cpus=cpus, gpus=gpus, resources=resources)
    return Demand.of(name, group)


def test_what_fits_is_accepted() -> None:
    check_capacity([demand("rollout", 2, 4.0, 1.0), demand("learner", 1, 8.0, fast=1.0)], NODES)


def test_nothing_is_reserved_where_nothing_is_asked() -> None:
    assert demand("scoring", 1, 0.0).amounts == {}
    assert total_of([demand("a", 2, 1.5, fast=1.0), demand("b", 1, 1.0)]) == {"CPU": 4.0, "fast": 2}


@pytest.mark.parametrize(
    ("demands", "message"),
    [
        ([demand("rollout", 3, 6.0)], r"needs 18 CPU \(rollout 18\) but the cluster has 16"),
        ([demand("rollout", 1, 1.0, 2.0), demand("learner", 1, 1.0, 1.0)], "needs 3 GPU"),
        ([demand("learner", 1, 9.0)], "one learner worker needs 9 CPU but the largest machine"),
        (
            [demand("rollout", 2, 1.0, fast=1.0), demand("learner", 1, 1.0)],
            r"needs 2 fast \(rollout 2\) but the cluster has 1; .* resources\.fast of a group",
        ),
        ([demand("scoring", 1, 1.0, huge=3.0)], "but the cluster has 0"),
    ],
)
def test_what_does_not_fit_is_named(demands: list[Demand], message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        check_capacity(demands, NODES)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def train_config(**learner: float) -> TrainConfig:
    return TrainConfig.model_validate({"rollout": {"cpus": 0.5}, "learner": learner})


@pytest.mark.usefixtures("two_cores")
def test_a_run_that_this_machine_cannot_hold_is_refused_before_it_starts() -> None:
    check_this_machine(train_config(cpus=0.5))
    with pytest.raises(ResourceError, match=r"needs 100\.5 CPU .*learner 99.* has 2"):
        check_this_machine(train_config(cpus=99))


@pytest.mark.usefixtures("two_cores")
def test_groups_of_offline_training_take_turns() -> None:
    settings = {"fdc": {"amounts": {"GENERAL": 1}}, "trainer": {"num_workers": 2}}
    check_this_machine(FitConfig.model_validate(settings))
    with pytest.raises(ResourceError, match=r"needs 3 CPU \(trainer 3\)"):
        check_this_machine(FitConfig.model_validate({**settings, "trainer": {"cpus": 3}}))


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    ("cpus", "device", "message"),
    [
        ({"rollout": 1.0, "scoring": 1.0, "trainer": 1.0}, "cpu", ""),
        ({"rollout": 1.5, "scoring": 1.0}, "cpu", r"needs 2\.5 CPU \(rollout 1\.5, scoring 1\)"),
        # On a CPU the generator stays while the answers that it gave are learned from.
        ({"rollout": 1.5, "scoring": 0.5}, "cpu", r"needs 2\.5 CPU \(rollout 1\.5, trainer 1\)"),
        ({"rollout": 1.5, "scoring": 0.5}, "cuda", ""),
    ],
)
def test_what_an_own_sampling_holds_at_once_is_counted_together(
    cpus: dict[str, float], device: str, message: str
) -> None:
    groups = {name: {"cpus": amount} for name, amount in cpus.items()}
    settings = {"objective": {"type": "ars"}, "device": device, **groups}
    config = FitConfig.model_validate({**settings, "fdc": {"amounts": {"GENERAL": 1}}})
    with pytest.raises(ResourceError, match=message) if message else nullcontext():
        check_this_machine(config)


@pytest.mark.usefixtures("two_cores")
def test_another_cluster_is_not_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_this_machine(train_config(cpus=99))


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    ("num_gpus", "device", "policy", "warns"),
    [
        (1, "cpu", "own", True),
        (0, "cpu", "own", False),
        (1, "cuda", "own", False),
        (1, "cpu", "", False),  # the built-in world is made for a CPU
    ],
)
def test_gpus_that_stay_idle_beside_an_own_model_are_a_warning(
    num_gpus: int,
    device: str,
    policy: str,
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(capacity, "count_gpus", lambda: num_gpus)
    own = dict.fromkeys(("policy", "reward", "cost", "prompts"), policy)
    tree = {"device": device, "data": own, "rollout": {"cpus": 0.5}, "learner": {"cpus": 0.5}}
    check_this_machine(TrainConfig.model_validate(tree))
    assert ("try device=cuda dtype=bfloat16" in caplog.text) is warns


@pytest.mark.parametrize(("limit", "expected"), [("max", 16), (str(4 * 2**30), 4), ("", 16)])
def test_the_memory_of_a_container_is_its_limit(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\n")
    if limit:
        (tmp_path / "memory.max").write_text(limit)
    assert machine_memory(tmp_path / "meminfo", tmp_path) == expected * 2**30
