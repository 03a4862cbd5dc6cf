"""Locks and environments of the peers."""

import re
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from benchmarks.against import systems
from benchmarks.against.child import SystemFailed
from benchmarks.against.systems import LOCKS, OURS, PEERS, System, interpreter

PIN = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.+!-]+")


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.setattr(systems, "LOCKS", tmp_path)
    (tmp_path / "toy.txt").write_text("torch==1\ntoy==2\n")
    return System(key="toy", name="toy", module="toy", algorithm="ppo", lock="toy.txt")


@pytest.mark.parametrize("name", sorted({system.lock for system in PEERS}))
def test_locks_hold_exact_versions_and_the_torch_of_ours(name: str) -> None:
    lines = [x for x in (LOCKS / name).read_text().splitlines() if not x.startswith("#")]
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    ours = (LOCKS.parents[2] / "requirements" / "cpu.lock").read_text().splitlines()
    assert next(line for line in lines if line.startswith("torch==")) in ours


def test_ours_runs_here() -> None:
    assert interpreter(OURS[0], Path("nowhere")) == Path(sys.executable)


def test_an_environment_is_made_once_for_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: System
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(systems, "_run", lambda command, log: commands.append(list(command)))
    python = interpreter(peer, tmp_path / "environments")
    assert python == tmp_path / "environments" / "toy" / "bin" / "python"
    assert [command[-1] for command in commands] == [
        str(python.parents[1]),
        "torch==1",
        str(tmp_path / "toy.txt"),
    ]
    assert "--no-deps" in commands[-1]
    interpreter(peer, tmp_path / "environments")
    assert len(commands) == 3
    (tmp_path / "toy.txt").write_text("torch==1\ntoy==3\n")
    interpreter(peer, tmp_path / "environments")
    assert len(commands) == 6


def test_an_installation_that_fails_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: System
) -> None:
    code = "print('ERROR: No matching distribution found for toy'); raise SystemExit(1)"
    run = systems._run

    def fail(command: list[str], log: Path) -> None:
        run([sys.executable, "-c", code] if "-r" in command else [sys.executable, "-c", ""], log)

    monkeypatch.setattr(systems, "_run", fail)
    for _ in range(2):
        with pytest.raises(SystemFailed, match="ERROR: No matching distribution found for toy"):
            interpreter(peer, tmp_path / "environments")


def test_an_environment_with_the_right_mark_is_left_alone(tmp_path: Path, peer: System) -> None:
    mark = tmp_path / "toy" / ".installed"
    mark.parent.mkdir()
    mark.write_text(sha256((tmp_path / "toy.txt").read_bytes()).hexdigest())
    assert interpreter(peer, tmp_path).name == "python"
