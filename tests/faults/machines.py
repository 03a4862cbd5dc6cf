"""A Ray cluster of several machines on one: a raylet each, with its own address and folder."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
STARTS_WITHIN = 90.0
STARTED = "will now block forever"
"""What `ray start` says once its machine has joined."""


class Machine:
    """One raylet and all that it started."""

    def __init__(self, address: str, process: subprocess.Popen[bytes]) -> None:
        self.address = address
        self.process = process

    def kill(self) -> None:
        """All of its processes at once, as when the power fails."""
        family = [psutil.Process(self.process.pid)]
        family += family[0].children(recursive=True)
        # A worker that lost its raylet would end itself, in good order: not what is meant here.
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGSTOP)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()


class Cluster:
    """The first machine is the head; `environment` is for commands that are to use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended = ExitStack()
        self.machines: list[Machine] = []
        self._port = _free_port()
        self.environment = {
            "RAY_ADDRESS": f"127.0.0.1:{self._port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }

    def add(
        self,
        resources: Mapping[str, float],
        *,
        cpus: int = 1,
        before: tuple[str, ...] = (),
        **environment: str,
    ) -> Machine:
        """Start a machine and wait until it has joined.

        Args: before: words in front of the command that starts it.
        """
        number = len(self.machines) + 1
        address = f"127.0.0.{number}"
        folder = self._folder / f"machine-{number}"
        folder.mkdir()
        role = ["--address", self.environment["RAY_ADDRESS"]]
        if number == 1:
            role = ["--head", "--port", str(self._port), "--include-dashboard", "false"]
            role += ["--ray-client-server-port", str(_free_port())]
        options = ["--object-store-memory", str(200 * 2**20), "--num-cpus", str(cpus)]
        options += ["--resources", json.dumps(dict(resources))]
        options += ["--node-ip-address", address, "--disable-usage-stats", "--block"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*before, RAY, "start", *role, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **self.environment, **environment},
            )
        machine = Machine(address, process)
        self.machines.append(machine)
        self._ended.callback(self._end, machine)
        # One after another: two that start at once take each other's ports.
        deadline = time.monotonic() + STARTS_WITHIN
        while STARTED not in (folder / "log").read_text():
            assert process.poll() is None, folder / "log"
            assert time.monotonic() < deadline, folder / "log"
            time.sleep(0.2)
        return machine

    def close(self) -> None:
        self._ended.close()

    @staticmethod
    def _end(machine: Machine) -> None:
        with suppress(psutil.NoSuchProcess):
            machine.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    made = Cluster(folder)
    try:
        yield made
    finally:
        made.close()
