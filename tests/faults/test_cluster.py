"""A cluster that is not there, goes away or is too small."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.faults.scenes import processes, scene
from tests.integration import runs


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_inputs(tmp_path_factory.mktemp("inputs"))


def test_a_dead_address_is_a_clear_error_at_once(settings: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with scene(settings, tmp_path, RAY_ADDRESS=address) as run:
        said = run.ends(4, within=60)
    assert f"nothing answers at RAY_ADDRESS ({address})" in said
    assert "Traceback" not in said


def test_a_machine_that_is_too_small_is_said_before_anything_starts(
    settings: Path, tmp_path: Path
) -> None:
    with scene(settings, tmp_path, "learner.cpus=1e6") as run:
        said = run.ends(4, within=60)
    assert "learner 1e+06" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("moment", ["starting", "running"])
def test_a_head_that_is_killed_ends_the_run_with_the_way_to_go_on(
    moment: str, settings: Path, tmp_path: Path
) -> None:
    with scene(settings, tmp_path, "timeout_seconds=60", "iterations=50") as run:
        if moment == "running":
            runs.wait_until(lambda: runs.num_rows(run.output) >= 3, run.process)
        else:
            runs.wait_until(lambda: bool(processes(run, "ray::Rollout")), run.process)
        killed = time.monotonic()
        processes(run, "gcs_server")[0].kill()
        said = run.ends(4, within=200)
    assert time.monotonic() - killed < 150
    assert "goes on from the last checkpoint" in said
