"""A run spread over several machines, one of which goes away or is not like the others."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from equilibrate.run.sinks import read_rows
from tests.faults.machines import Cluster, Machine, cluster
from tests.faults.scenes import FAULTS, scene
from tests.integration import runs

TWO_RANKS = (
    "rollout.num_workers=1",
    "learner.num_workers=2",
    # Long enough for a machine to join in the midst of it.
    "iterations=100",
    "checkpoint_every=20",
    "evaluate_every=0",
)
APART = (
    "rollout.resources={sampling: 1}",
    "scoring.resources={scoring: 1}",
    "learner.resources={learning: 1}",
)
SAMPLES, SCORES, LEARNS = {"sampling": 1}, {"scoring": 1}, {"learning": 1}


def _own_storage() -> tuple[str, ...]:
    """Words that give a command an empty folder of its own in place of the one named next."""
    mount = ("sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
    for rights in ("-m", "-rm"):
        words = ("unshare", rights, *mount)
        if subprocess.run([*words, "/mnt", "true"], capture_output=True).returncode == 0:
            return words
    return ()


OWN_STORAGE = _own_storage()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "machines"
    folder.mkdir()
    with cluster(folder) as made:
        yield made


def spread(machines: Cluster) -> tuple[Machine, Machine]:
    """Beside the head, which has the driver and a rank: one for the generator, and one for the
    scorer and the other rank."""
    machines.add(LEARNS)
    return machines.add(SAMPLES), machines.add({**SCORES, **LEARNS})


@pytest.mark.parametrize(("goes", "stage"), [("generator", 2), ("scorer and rank", 3)])
def test_what_a_lost_machine_did_is_done_on_another_one(
    goes: str, stage: int, settings: Path, tmp_path: Path, machines: Cluster
) -> None:
    overrides = (*TWO_RANKS, f"learner.zero_stage={stage}")
    (tmp_path / "alone").mkdir()
    with scene(settings, tmp_path / "alone", *overrides) as alone:
        alone.ends(0)
    samples, scores = spread(machines)
    with scene(settings, tmp_path, *overrides, *APART, **machines.environment) as run:
        runs.wait_until(lambda: runs.num_rows(run.output) >= 3, run.process)
        machines.add({**SAMPLES, **SCORES, **LEARNS})
        lost = samples if goes == "generator" else scores
        lost.kill()
        said = run.ends(0)
    assert f"machine {samples.address} (" in said, "who sits where"
    assert re.search(rf"with its machine {re.escape(lost.address)} \(.*\), which does not", said)
    assert "Traceback" not in said
    metrics = [read_rows(scene.output / "metrics.jsonl") for scene in (run, alone)]
    assert metrics[0] == metrics[1]


def test_weights_that_went_with_their_machine_are_made_again(
    settings: Path, tmp_path: Path, machines: Cluster
) -> None:
    machines.add(SCORES)
    both = machines.add({**SAMPLES, **LEARNS})
    overrides = (*TWO_RANKS, "learner.num_workers=1", "rollout.max_policy_lag=1", *APART)
    with scene(settings, tmp_path, *overrides, **machines.environment) as run:
        runs.wait_until(lambda: runs.num_rows(run.output) >= 3, run.process)
        machines.add({**SAMPLES, **LEARNS})
        both.kill()
        said = run.ends(0)
    assert said.count(f"machine {both.address}") == 3, "who sits where, and two losses"
    assert "Traceback" not in said


def test_a_loss_for_which_no_machine_has_room_ends_the_run_with_that_word(
    settings: Path, tmp_path: Path, machines: Cluster
) -> None:
    samples, _ = spread(machines)
    overrides = (*TWO_RANKS, "timeout_seconds=45", "max_restarts=1", *APART)
    with scene(settings, tmp_path, *overrides, **machines.environment) as run:
        runs.wait_until(lambda: runs.num_rows(run.output) >= 3, run.process)
        samples.kill()
        said = run.ends(4)
    assert "no machine of the cluster had room for the rollout worker 0 in 45 s" in said
    assert "the same command goes on from the last checkpoint" in said
    assert "Traceback" not in said


def test_a_machine_with_storage_of_its_own_is_named_before_the_run_starts(
    settings: Path, tmp_path: Path, machines: Cluster
) -> None:
    if not OWN_STORAGE:
        pytest.skip("this user may not mount: unshare is refused")
    hidden = tmp_path / "run"
    hidden.mkdir()
    machines.add({**SCORES, **LEARNS})
    apart = machines.add(SAMPLES, before=(*OWN_STORAGE, str(hidden)))
    overrides = (*TWO_RANKS, "learner.num_workers=1", *APART)
    with scene(settings, tmp_path, *overrides, **machines.environment) as run:
        said = run.ends(4, within=120)
    assert f"machine {apart.address} (" in said
    assert f"does not share the run's folder {hidden}" in said
    assert runs.num_rows(run.output) == 0
    assert "replacing" not in said
    assert "Traceback" not in said


def test_a_machine_with_other_software_is_named_before_the_run_starts(
    settings: Path, tmp_path: Path, machines: Cluster
) -> None:
    older = (
        "import equilibrate.run.agreement as a; a.installed_versions = lambda: {'torch': '1.0+cpu'}"
    )
    machines.add({**SCORES, **LEARNS})
    fault = {
        "FAULT": f"equilibrate.run.agreement:Agreement.require:{older}",
        "FAULT_STATE": str(tmp_path),
    }
    paths = [str(FAULTS), os.environ.get("PYTHONPATH", "")]
    odd = machines.add(SAMPLES, PYTHONPATH=os.pathsep.join(filter(None, paths)), **fault)
    overrides = (*TWO_RANKS, "learner.num_workers=1", *APART)
    with scene(settings, tmp_path, *overrides, **machines.environment) as run:
        said = run.ends(4, within=120)
    assert re.search(
        rf"machine {re.escape(odd.address)} .* other software .*torch 1\.0 \(the dr", said
    )
    assert "Traceback" not in said
