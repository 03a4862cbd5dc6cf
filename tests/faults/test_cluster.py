"""A cluster that is not there, goes away or is too small."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.machines import Cluster, cluster
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


def test_no_cluster_to_be_found_is_a_clear_error_at_once(settings: Path, tmp_path: Path) -> None:
    with scene(settings, tmp_path, RAY_ADDRESS="auto") as run:
        said = run.ends(4, within=60)
    assert "RAY_ADDRESS is 'auto' and no Ray cluster runs here" in said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def two_clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Cluster]]:
    with (
        cluster(tmp_path_factory.mktemp("one")) as one,
        cluster(tmp_path_factory.mktemp("two")) as two,
    ):
        one.add({})
        two.add({})
        yield one, two


def test_of_two_clusters_on_the_machine_none_is_guessed(
    settings: Path, tmp_path: Path, two_clusters: tuple[Cluster, Cluster]
) -> None:
    with scene(settings, tmp_path, RAY_ADDRESS="auto") as run:
        said = run.ends(4, within=60)
    ports = [each.environment["RAY_ADDRESS"].partition(":")[2] for each in two_clusters]
    assert "this machine belongs to 2 Ray clusters; set it to one of" in said
    assert all(f":{port}" in said for port in ports)
    assert "Traceback" not in said


def test_the_token_of_another_cluster_is_said_to_be_one(
    settings: Path, tmp_path: Path, two_clusters: tuple[Cluster, Cluster]
) -> None:
    one, two = two_clusters
    address = {"RAY_ADDRESS": two.environment["RAY_ADDRESS"]}
    with scene(settings, tmp_path, **one.environment | address) as run:
        said = run.ends(4, within=90)
    assert "if it asks for a token, set RAY_AUTH_MODE=token" in said
    assert "Traceback" not in said


OTHER_RAY = """
import json, os
from ray._raylet import GcsClient

client = GcsClient(address=os.environ["RAY_ADDRESS"])
place = b"CLUSTER_METADATA", b"cluster"
told = json.loads(client.internal_kv_get(*place)) | {"ray_version": "2.40.0"}
client.internal_kv_put(place[0], json.dumps(told).encode(), True, place[1])
"""
"""Makes a cluster say that it was started by another Ray."""


def test_a_cluster_of_another_ray_is_said_to_be_one(
    settings: Path, tmp_path: Path, two_clusters: tuple[Cluster, Cluster]
) -> None:
    environment = two_clusters[0].environment
    subprocess.run([sys.executable, "-c", OTHER_RAY], env=os.environ | environment, check=True)
    with scene(settings, tmp_path, **environment) as run:
        said = run.ends(4, within=60)
    assert "has other software (Version mismatch: The cluster was started with: Ray: 2.40.0" in said
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
