"""The parent's end of the talk: one system in a process of its own, timed from outside."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

ROOT = Path(__file__).parents[2]
CLOSING_SECONDS = 60.0
ERROR_LINE = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|NotFound)\b")


class SystemFailed(Exception):
    """The system's own words, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    seconds: float
    """Of the wall clock, from giving the turn to hearing that it is over."""
    tokens: int
    """Response tokens that it sampled."""


class Child:
    """Started when made; every failure ends as `SystemFailed`."""

    def __init__(
        self, command: Sequence[str], *, log: Path, threads: int, timeout_seconds: float
    ) -> None:
        self._log = log
        self._timeout_seconds = timeout_seconds
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with log.open("w") as errors:
            try:
                self._process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=_environment(Path(command[0]).parent, threads),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    # Of its own, so that its helpers can be ended with it.
                    start_new_session=True,
                )
            except OSError as error:
                raise SystemFailed(f"{type(error).__name__}: {error}") from error
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        self._answer()

    def take_turn(self) -> Turn:
        assert self._process.stdin is not None
        start = time.perf_counter()
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except OSError:
            raise SystemFailed(self._last_words()) from None
        answer = self._answer()
        return Turn(seconds=time.perf_counter() - start, tokens=answer["tokens"])

    def close(self) -> None:
        """Ask the process to end, then make it."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSING_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> str:
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return error_in(self._log)

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self._timeout_seconds)
        except queue.Empty:
            raise SystemFailed(f"no answer within {self._timeout_seconds:g} s") from None
        if line is None:
            raise SystemFailed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer


def _environment(programs: Path, threads: int) -> dict[str, str]:
    """Ours, without what would lead a peer's interpreter to our packages, and without a network.

    Args: programs: folder of the interpreter, where ninja is, which DeepSpeed compiles with.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }


def error_in(log: Path) -> str:
    """The last line of a log that names an error, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if ERROR_LINE.match(line)]
    return (named or lines or ["ended without a word"])[-1]
