"""Progress for people: a live table on a terminal, one line per iteration anywhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import IO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SHOWN = {
    "reward": "reward",
    "safety_cost": "cost",
    "unsafe_fraction": "unsafe",
    "multiplier": "lambda",
    "kl": "KL",
    "entropy": "entropy",
    "kept_fraction": "kept",
}
"""metric -> its short word on the console"""
REFRESH_PER_SECOND = 4
RECENT_STEPS = 10
"""Optimiser steps whose mean a line tells."""


class ProgressMirror:
    """One line per iteration, or a live display where `stream` is a terminal."""

    def __init__(self, *, iterations: int, stream: IO[str]) -> None:
        self._iterations = iterations
        self._stream = stream
        self._values: Mapping[str, float] = {}
        self._display = _Display(iterations, stream) if stream.isatty() else None

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self._values = values

    def write_seconds(self, iteration: int, seconds: Mapping[str, float]) -> None:
        """Called after `write`, so both halves of the line are there."""
        if self._display is not None:
            self._display.show(iteration, self._values, seconds)
        else:
            line = format_line(iteration, self._iterations, self._values, seconds)
            print(line, file=self._stream, flush=True)

    def forget_from(self, iteration: int) -> None:
        if iteration and self._display is None:
            print(f"resuming at iteration {iteration}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._display is not None:
            self._display.close()


def format_step(name: str, rows: Sequence[Mapping[str, float]]) -> str:
    """For example `cost: step 24 of 380, loss 0.6120, 58 min left`.

    Args: rows: of `steps.jsonl`, one at least, of a training that `name` says.
    """
    last, recent = rows[-1], rows[-RECENT_STEPS:]
    done = int(last["iteration"]) + 1
    a_step = math.fsum(row["seconds"] for row in recent) / len(recent)
    minutes = math.ceil(a_step * (last["num_steps"] - done) / 60)
    loss = math.fsum(row["loss"] for row in recent) / len(recent)
    return f"{name}: step {done} of {int(last['num_steps'])}, loss {loss:.4g}, {minutes} min left"


def format_line(
    iteration: int, iterations: int, values: Mapping[str, float], seconds: Mapping[str, float]
) -> str:
    """For example `iteration 12/200  reward 1.204  ...  2.31 s (rollout 0.9, update 1.2)`."""
    width = len(str(iterations))
    shown = "  ".join(
        f"{word} {_number(values[name])}" for name, word in SHOWN.items() if name in values
    )
    phases = ", ".join(f"{k} {v:.2f}" for k, v in seconds.items() if k != "iteration")
    skipped = "  SKIPPED" if values.get("skipped") else ""
    total = seconds.get("iteration", math.fsum(seconds.values()))
    place = f"{iteration + 1:>{width}}/{iterations}"
    return f"iteration {place}  {shown}{skipped}  {total:.2f} s ({phases})"


class _Display:
    """A bar, the latest numbers with those at the start, and the split of the last iteration."""

    def __init__(self, iterations: int, stream: IO[str]) -> None:
        self._first: dict[str, float] = {}
        self._bar = Progress(
            TextColumn("[bold]PPO"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn()
        )
        self._task = self._bar.add_task("", total=iterations)
        self._live = Live(
            self._bar, console=Console(file=stream), refresh_per_second=REFRESH_PER_SECOND
        )
        self._live.start()

    def show(
        self, iteration: int, values: Mapping[str, float], seconds: Mapping[str, float]
    ) -> None:
        self._bar.update(self._task, completed=iteration + 1)
        for name in SHOWN:
            if name in values:
                self._first.setdefault(name, values[name])
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("", "first", "now"):
            table.add_column(heading, justify="left" if not heading else "right")
        for name, first in self._first.items():
            now = values.get(name, math.nan)
            table.add_row(SHOWN[name], _number(first), f"[bold]{_number(now)}")
        split = "  ".join(f"{phase} {value:.2f} s" for phase, value in seconds.items())
        skipped = "\n[red]update skipped: a number was not finite" if values.get("skipped") else ""
        self._live.update(Group(self._bar, table, f"[dim]{split}[/dim]{skipped}"))

    def close(self) -> None:
        self._live.stop()


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
