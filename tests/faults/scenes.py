"""A small run, whole, with one fault that comes from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.integration import runs

FAULTS = Path(__file__).parent


@dataclass(frozen=True)
class Scene:
    """A run under way."""

    process: subprocess.Popen[str]
    output: Path
    state: Path
    started: float

    def ends(self, code: int, *, within: float = 400.0) -> str:
        """What the run said, once it has ended with this exit code."""
        found = runs.finish(self.process, seconds=within)
        said = self.said()
        assert found == code, f"exit {found} instead of {code}:\n{said}"
        return said

    def said(self) -> str:
        return self.output.with_suffix(".log").read_text()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


@contextmanager
def scene(
    settings: Path,
    folder: Path,
    *overrides: str,
    fault: str = "",
    **environment: str,
) -> Iterator[Scene]:
    """Start `train` with the settings of `runs.write_inputs`; ends all it started afterwards.

    Args:
        fault: as `sitecustomize` reads it; in all processes.
        environment: of the command.
    """
    output, state = folder / "run", folder / "state"
    state.mkdir()
    variables = {**os.environ, **environment}
    if fault:
        paths = [str(FAULTS), variables.get("PYTHONPATH", "")]
        variables |= {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "FAULT": fault,
            "FAULT_STATE": str(state),
        }
    command = [sys.executable, "-m", "equilibrate", "train", "--config", str(settings)]
    with output.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"output={output}", *overrides],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables,
        )
    started = Scene(process=process, output=output, state=state, started=time.monotonic())
    try:
        yield started
    finally:
        _end(process)


def processes(scene: Scene, name: str) -> list[psutil.Process]:
    """Processes of the run's own cluster, by a part of their command line."""
    found = []
    for process in psutil.Process(scene.process.pid).children(recursive=True):
        try:
            if name in " ".join([process.name(), *process.cmdline()]):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def _end(process: subprocess.Popen[str]) -> None:
    try:
        family = [*psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    process.kill()
    process.wait()
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
