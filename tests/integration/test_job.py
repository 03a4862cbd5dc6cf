"""`ray job submit` on a cluster of its own: follow, stop, go on, and find the output."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
ITERATIONS = 30
OVERRIDES = (
    f"iterations={ITERATIONS}",
    "cpu_threads=1",
    "checkpoint_every=8",
    "evaluate_every=0",
    "rollout.prompts_per_iteration=8",
    "rollout.max_new_tokens=8",
    "ppo.minibatch_size=8",
    "sandbox.base_steps=20",
    "sandbox.pairs=400",
    "sandbox.evaluation_per_cell=4",
)
START_SECONDS = 240
JOB_SECONDS = 500
pytestmark = pytest.mark.timeout(3 * JOB_SECONDS)
LINE = re.compile(rf"^iteration +(\d+)/{ITERATIONS} ", re.MULTILINE)


@dataclass(frozen=True)
class Cluster:
    """A head node and the environment of a shell that may talk to it."""

    url: str
    environment: dict[str, str]

    def ray(self, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("ray")), *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )

    def submit(self, output: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        """The command of the documentation, made small."""
        variables = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}
        return self.ray(
            *("job", "submit", "--address", self.url, "--working-dir", "."),
            *("--runtime-env-json", json.dumps(variables), *flags, "--"),
            *("python", "-m", "equilibrate", "train", "--config", "deploy/configs/sandbox.yaml"),
            *(f"output={output}", *OVERRIDES),
            seconds=JOB_SECONDS,
        )

    def ask(self, path: str, method: str = "GET", token: str = "") -> Any:
        """What the dashboard says to the command line, without its seconds of start-up."""
        headers = {"Authorization": f"Bearer {token or self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.url + path, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def logs(self, job: str) -> str:
        return str(self.ask(f"/api/jobs/{job}/logs")["logs"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One head node with its own ports, folder and token, which ends with all its processes."""
    # Sockets lie in it, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="eq"))
    names = ("port", "dashboard-port", "ray-client-server-port", "metrics-export-port")
    agents = ("dashboard-agent-listen-port", "runtime-env-agent-port")
    ports = dict(zip((*names, *agents), free_ports(len(names) + len(agents)), strict=True))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
        # Without both, whoever can reach the port may run commands.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    cluster = Cluster(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += ["--dashboard-host=127.0.0.1", f"--temp-dir={folder}", "--num-cpus=2"]
    command += ["--disable-usage-stats", *(f"--{name}={port}" for name, port in ports.items())]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_up(cluster, head, folder / "head.log")
        yield cluster
    finally:
        end(head)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage") / "run"


@pytest.fixture(scope="module")
def stopped(cluster: Cluster, output: Path) -> tuple[str, str]:
    """Log and last status of a job that was stopped in the middle."""
    submitted = cluster.submit(output, "--no-wait", "--submission-id=first")
    assert submitted.returncode == 0, submitted.stdout
    deadline = time.monotonic() + JOB_SECONDS
    while not LINE.search(log := cluster.logs("first")):
        assert cluster.ask("/api/jobs/first")["status"] in ("PENDING", "RUNNING"), log
        assert time.monotonic() < deadline, log
        time.sleep(0.2)
    cluster.ask("/api/jobs/first/stop", method="POST")
    while (status := cluster.ask("/api/jobs/first")["status"]) == "RUNNING":
        assert time.monotonic() < deadline, cluster.logs("first")
        time.sleep(0.2)
    return cluster.logs("first"), status


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_until_up(cluster: Cluster, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            cluster.ask("/api/jobs/")
        except (urllib.error.URLError, TimeoutError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            time.sleep(0.5)
        else:
            return


def end(head: subprocess.Popen[bytes]) -> None:
    """This cluster's processes alone: `ray stop` would end every cluster of the machine."""
    processes = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=10)
    head.kill()
    head.wait()


def test_a_stranger_is_refused(cluster: Cluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        cluster.ask("/api/jobs/", token="0" * 64)
    refusal.value.close()
    assert refusal.value.code in (401, 403)


def test_stop_saves_what_was_done(stopped: tuple[str, str], output: Path) -> None:
    log, status = stopped
    assert "stopped and saved at iteration" in log, log
    assert status == "STOPPED"
    assert (output / "checkpoints" / "LATEST").is_file()
    assert not (output / "results.json").exists()


def test_the_same_command_goes_on_and_streams_to_the_end(
    cluster: Cluster, stopped: tuple[str, str], output: Path
) -> None:
    first = [int(number) for number in LINE.findall(stopped[0])]
    resumed = cluster.submit(output)
    assert resumed.returncode == 0, resumed.stdout
    second = [int(number) for number in LINE.findall(resumed.stdout)]
    # Every iteration once, by one job or the other: the checkpoint holds all that was done.
    assert first + second == list(range(1, ITERATIONS + 1))
    assert "reward: found" in resumed.stdout
    assert json.loads((output / "results.json").read_text())["aligned"]
    assert "<html" in (output / "report.html").read_text()[:200]
    assert f"report: {output / 'report.html'}" in resumed.stdout
