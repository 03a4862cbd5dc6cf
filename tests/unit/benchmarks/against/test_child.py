"""Real processes that speak, stay silent or fail: what the parent makes of them."""

import sys
from pathlib import Path

import pytest

from benchmarks.against.child import Child, SystemFailed, error_in

LOOP = """
from benchmarks.against.turns import Turns
turns = Turns()
print("a library says hello")
while True:
    turns.wait()
    turns.add_tokens(3)
    turns.done()
"""


def start(tmp_path: Path, code: str, timeout_seconds: float = 30.0) -> Child:
    return Child(
        [sys.executable, "-c", code],
        log=tmp_path / "log.txt",
        threads=1,
        timeout_seconds=timeout_seconds,
    )


def test_a_turn_is_timed_from_outside(tmp_path: Path) -> None:
    child = start(tmp_path, LOOP)
    child.wait_until_ready()
    turns = [child.take_turn() for _ in range(2)]
    child.close()
    assert [turn.tokens for turn in turns] == [3, 3]
    assert all(turn.seconds >= 0 for turn in turns)
    # What libraries print after that is kept away from the talk.
    assert "says hello" in (tmp_path / "log.txt").read_text()


def test_a_system_that_cannot_start_fails_with_its_own_error(tmp_path: Path) -> None:
    child = start(tmp_path, "import nothing_of_this_name")
    with pytest.raises(SystemFailed, match=r"^ModuleNotFoundError: No module named 'nothing_of"):
        child.wait_until_ready()
    child.close()


def test_a_program_that_is_absent_fails_too(tmp_path: Path) -> None:
    with pytest.raises(SystemFailed, match="FileNotFoundError"):
        Child([str(tmp_path / "python")], log=tmp_path / "log", threads=1, timeout_seconds=1.0)


def test_a_system_that_fails_later_or_falls_silent(tmp_path: Path) -> None:
    child = start(
        tmp_path, LOOP.replace("turns.add_tokens(3)", "raise RuntimeError('nan in the loss')")
    )
    child.wait_until_ready()
    with pytest.raises(SystemFailed, match="RuntimeError: nan in the loss"):
        child.take_turn()
    child.close()
    silent = start(tmp_path, "import sys; sys.stdin.read()", timeout_seconds=0.1)
    with pytest.raises(SystemFailed, match=r"no answer within 0.1 s"):
        silent.wait_until_ready()
    silent.close()


def test_a_system_that_is_killed_says_so(tmp_path: Path) -> None:
    child = start(tmp_path, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(SystemFailed, match=r"^ended by SIGKILL \(out of memory\?\)$"):
        child.wait_until_ready()
    child.close()


def test_the_error_is_the_last_line_that_names_one(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("OSError: first\nValueError: second\n  (raylet) bye\n")
    assert error_in(log) == "ValueError: second"
    log.write_text("something\nKilled\n\n")
    assert error_in(log) == "Killed"
    log.write_text("")
    assert error_in(log) == "ended without a word"
