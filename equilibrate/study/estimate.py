"""How long the rest of a study takes, from the runs that it has finished."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from equilibrate.config.study import Kind
from equilibrate.data.rows import counted
from equilibrate.evaluation.statistics import student_t_95
from equilibrate.study.grid import PlannedRun
from equilibrate.study.results import RunResult, missing_runs


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLeft:
    """Seconds until the last run ends; runs that have begun count whole."""

    num_runs: int
    seconds: float
    """Expected; nan while a kind that is left has no finished run."""
    low: float
    high: float
    """Ends of the 95 % range; nan while a kind that is left has fewer than two finished runs."""
    unknown: tuple[Kind, ...]
    """Kinds that are left and of which none has finished."""

    def __str__(self) -> str:
        """For example `about 2 h 05 min (1 h 50 min to 2 h 20 min) for 12 runs`."""
        if not self.num_runs:
            return "no run is left"
        runs = counted(self.num_runs, "run")
        if self.unknown:
            return f"unknown for {runs}: no finished {' and '.join(self.unknown)} run yet"
        ends = f" ({_clock(self.low)} to {_clock(self.high)})" if self.low == self.low else ""
        return f"about {_clock(self.seconds)}{ends} for {runs}"


def time_left(
    runs: Sequence[PlannedRun], results: Mapping[str, RunResult], *, parallel: int
) -> TimeLeft:
    """Runs left x mean seconds of their kind, shared by `parallel` runs at a time.

    The range is that of a sum of m runs when n have been seen: the m differ by themselves, and
    their mean is known from n alone, so its variance is s^2 (m + m^2 / n), summed over kinds.
    Raises: ValueError unless `parallel` is at least 1.
    """
    if parallel < 1:
        raise ValueError(f"parallel ({parallel}) must be at least 1")
    left = missing_runs(runs, results)
    work, half_squared, unknown = 0.0, 0.0, []
    for kind in dict.fromkeys(run.kind for run in left):
        num_left = sum(run.kind == kind for run in left)
        seconds = [results[r.key].seconds for r in runs if r.kind == kind and r.key in results]
        if not seconds:
            unknown.append(kind)
            continue
        work += num_left * fmean(seconds)
        half_squared += _half_width(seconds, num_left) ** 2
    # Fewer runs than places do not fill them: the last run alone still takes its own time.
    places = max(1, min(parallel, len(left)))
    middle = math.nan if unknown else work / places
    half = math.sqrt(half_squared) / places
    low = middle - half
    return TimeLeft(
        num_runs=len(left),
        seconds=middle,
        low=low if math.isnan(low) else max(0.0, low),
        high=middle + half,
        unknown=tuple(unknown),
    )


def _half_width(seconds: Sequence[float], num_left: int) -> float:
    n = len(seconds)
    if n < 2:
        return math.nan
    return student_t_95(n - 1) * stdev(seconds) * math.sqrt(num_left + num_left**2 / n)


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
