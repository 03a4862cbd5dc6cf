"""What a machine can say of one of its processes that hangs or is gone. Linux only."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LOG_LINES = 8
"""Last lines of a log that are quoted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """How to find a process, and what it leaves behind."""

    pid: int
    log: str
    """File that its standard error goes to."""
    stacks: str
    """File that SIGUSR1 makes it write its stacks to."""
    oom_kills: int
    """Processes of its machine that the kernel had killed for memory when it began."""


def open_stacks() -> IO[bytes]:
    """From now on SIGUSR1 makes this process write the stacks of its threads into the file."""
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    # Written by the C signal handler, so also while a collective or a kernel does not return.
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
    return file


def this_process(stacks: IO[bytes]) -> Process:
    """Args: stacks: as `open_stacks` returned it; the process must keep it open."""
    pid = os.getpid()
    return Process(
        pid=pid,
        log=os.path.realpath("/proc/self/fd/2"),
        stacks=f"/proc/{pid}/fd/{stacks.fileno()}",
        oom_kills=_oom_kills(),
    )


def stacks_of(process: Process) -> str:
    """State, memory and the stacks of all threads; no stacks of a process that is stopped."""
    try:
        os.kill(process.pid, signal.SIGUSR1)
        written = ""
        for _ in range(20):
            time.sleep(0.1)
            known, written = written, Path(process.stacks).read_text(errors="replace")
            if written and written == known:
                break
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError as error:
        return f"process {process.pid}: {error}"
    kept = [line for line in lines if line.startswith(("State:", "VmRSS:", "Threads:"))]
    return "\n".join([f"process {process.pid}", *kept, written])


def last_words(process: Process) -> str:
    """The last lines of its log, and whether the kernel has killed for memory since it began."""
    words = []
    if (killed := _oom_kills() - process.oom_kills) > 0:
        words.append(f"(the kernel has killed {killed} processes here for memory since it began)")
    try:
        log = Path(process.log).read_text(errors="replace")
    except OSError:
        log = ""
    return "\n".join([*words, *log[-4000:].splitlines()[-LOG_LINES:]])


def end(process: Process, *, patience: float = 1.0) -> str:
    """SIGKILL, if it does not end by itself within `patience` seconds."""
    deadline = time.monotonic() + patience
    # The file is looked at and not the number, which may have been given to another process.
    while os.path.lexists(process.stacks):
        if time.monotonic() > deadline:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    return ""


def _oom_kills() -> int:
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
