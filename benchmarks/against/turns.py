"""The child's end of the talk: wait for a turn, do one iteration, say so in one line of JSON.

Runs in every environment: standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time


class Turns:
    """Takes standard output for itself; whatever a library prints goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._is_ready = False
        self._tokens = 0
        self._start = 0.0

    def wait(self) -> None:
        """Block until the parent gives the turn. Raises: SystemExit once it gives no more."""
        if not self._is_ready:
            self._say({"ready": True})
            self._is_ready = True
        if not sys.stdin.readline():
            raise SystemExit(0)
        self._tokens = 0
        self._start = time.perf_counter()

    def add_tokens(self, count: int) -> None:
        """Response tokens that this turn sampled."""
        self._tokens += count

    def done(self) -> None:
        self._say({"seconds": time.perf_counter() - self._start, "tokens": self._tokens})

    def _say(self, message: dict[str, object]) -> None:
        self._out.write(json.dumps(message) + "\n")
