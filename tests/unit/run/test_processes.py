"""A child that sleeps, as a worker that hangs, dies or is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from equilibrate.run.processes import Process, end, last_words, stacks_of

CHILD = """
import sys, time
from equilibrate.run.processes import open_stacks, this_process
stacks = open_stacks()
process = this_process(stacks)
print(process.pid, process.log, process.stacks, process.oom_kills, flush=True)
print("the wheels came off", file=sys.stderr, flush=True)
def wait_for_the_others():
    time.sleep(100)
wait_for_the_others()
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Process]:
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", CHILD]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert running.stdout is not None
    pid, file, stacks, kills = running.stdout.readline().split()
    time.sleep(0.1)
    yield Process(pid=int(pid), log=file, stacks=stacks, oom_kills=int(kills))
    running.kill()
    running.wait()
    running.stdout.close()


def test_a_hanging_process_says_where_it_is(child: Process) -> None:
    said = stacks_of(child)
    assert f"process {child.pid}" in said
    assert "State:\tS (sleeping)" in said
    assert "in wait_for_the_others" in said


def test_a_stopped_process_is_said_to_be_stopped(child: Process) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    assert "(stopped)" in stacks_of(child)


def test_the_end_of_the_log_and_kills_for_memory_are_quoted(child: Process) -> None:
    assert last_words(child) == "the wheels came off"
    said = last_words(replace(child, oom_kills=child.oom_kills - 2)).splitlines()
    assert said[0] == "(the kernel has killed 2 processes here for memory since it began)"
    assert last_words(replace(child, log="pipe:[1]")) == ""


def test_a_deaf_process_is_ended_and_nobody_in_its_place(child: Process) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    end(replace(child, stacks="/proc/self/fd/1000000"), patience=0.0)
    assert "(stopped)" in stacks_of(child)
    end(child, patience=0.1)
    time.sleep(0.5)
    assert not os.path.lexists(child.stacks)
