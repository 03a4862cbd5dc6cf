"""What every benchmark shares: pairs of measurements, quartiles, the roof, the result file.

    ratio = seconds of the reference / our seconds     1 is equal, larger is better

Ours and the reference take turns, so that a busy neighbour disturbs both; the ratio is taken pair
by pair.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.limits import Roof
from equilibrate.report.origin import machine
from equilibrate.run.versions import installed_versions

ROOF_TOLERANCE = 0.1
"""Relative move of the roof within a run above which its numbers deserve doubt."""
COPY_BYTES = 2**27
"""Larger than any cache."""
PROBE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Quartiles:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Of at least one value; between two neighbours the value is interpolated."""
        low, median, high = (float(v) for v in np.quantile(values, (0.25, 0.5, 0.75)))
        return cls(median, low, high)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of each measured round."""

    ours: tuple[float, ...]
    reference: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.ours, self.reference, strict=True)]


Round = Callable[[int], object]
"""One measured call; it is given the number of its round, warm-ups included."""


def measure_pairs(ours: Round, reference: Round, *, repeats: int, warmups: int) -> Pairs:
    """Ours, reference, ours, reference ...; the first `warmups` rounds are not counted."""
    seconds = [
        (_seconds(ours, number), _seconds(reference, number)) for number in range(warmups + repeats)
    ]
    first, second = zip(*seconds[warmups:], strict=True)
    return Pairs(first, second)


def _seconds(call: Round, number: int) -> float:
    start = time.perf_counter()
    call(number)
    return time.perf_counter() - start


def measure_roof(shapes: Sequence[tuple[int, int, int]], dtype: str = "float32") -> Roof:
    """Best rate of a product over shapes (m, k, n), and of a copy, with torch's threads."""
    import torch

    kind = {"dtype": getattr(torch, dtype)}
    rates = []
    for m, k, n in shapes:
        left, right = torch.randn(m, k).to(**kind), torch.randn(k, n).to(**kind)
        product = partial(torch.mm, left, right, out=torch.empty(m, n, **kind))
        rates.append(2 * m * k * n * _calls_per_second(product))
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    copies = _calls_per_second(partial(target.copy_, source))
    return Roof(flops_per_second=max(rates), bytes_per_second=2 * COPY_BYTES * copies)


def _calls_per_second(call: Callable[[], object]) -> float:
    """The fastest of several stretches: a roof is what the machine can do at all."""
    call()
    best, end = 0.0, time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < end:
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < PROBE_SECONDS / 10:
            call()
            calls += 1
        best = max(best, calls / elapsed)
    return best


class RoofWatch:
    """Measures the roof when made and when asked for the outcome."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], dtype: str = "float32") -> None:
        self._measure = partial(measure_roof, list(shapes), dtype)
        self._before = self._measure()

    def finish(self) -> tuple[Roof, dict[str, Any]]:
        """The roof to divide by, and what to write about it."""
        return settle_roof(self._before, self._measure())


def moved_fraction(before: float, after: float) -> float:
    """How far a rate moved, as a fraction of the larger one."""
    return abs(after - before) / max(before, after)


def settle_roof(before: Roof, after: Roof) -> tuple[Roof, dict[str, Any]]:
    """The better of two measurements, and what to write about them: before, after, difference."""
    pairs = [
        (before.flops_per_second, after.flops_per_second),
        (before.bytes_per_second, after.bytes_per_second),
    ]
    moved = max(moved_fraction(a, b) for a, b in pairs)
    flops, bandwidth = (max(pair) for pair in pairs)
    return Roof(flops_per_second=flops, bytes_per_second=bandwidth), {
        "gflops_per_second": [rate / 1e9 for rate in pairs[0]],
        "gbytes_per_second": [rate / 1e9 for rate in pairs[1]],
        "moved_fraction": moved,
        "is_steady": moved <= ROOF_TOLERANCE,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a benchmark says; `details` is for people, the rest is a contract."""

    name: str
    ratio: Quartiles | None
    """None where nothing could be compared."""
    reference: str
    """What the ratio compares with, in words."""
    limit_fraction: float | None
    """Least seconds that the machine allows / our median seconds; larger is better."""
    config: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    """Of a benchmark with several comparisons: each row has its own `ratio`."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "machine": measured_on()}


def measured_on() -> dict[str, Any]:
    """The kind of machine, how busy it is, and its libraries."""
    return {
        **machine(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": installed_versions(),
    }


def make_parser(document: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have; each adds its sizes."""
    parser = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--repeats", type=positive, default=10, help="measured rounds")
    parser.add_argument("--warmups", type=int, default=3, help="rounds before them")
    parser.add_argument(
        "--threads", type=positive, default=len(os.sched_getaffinity(0)), help="of torch"
    )
    return parser


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def become_rank(rank: int, num_ranks: int, port: int) -> None:
    """Of a process group on this machine: what `actors.engine.join_group` reads."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What to repeat the run with; without the file that the result goes to."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name != "json"
    }


def publish(result: Result, file: Path | None) -> None:
    """Print a short table, and write the file if one is named."""
    if (ratio := result.ratio) is None:
        print(f"{result.name}: no ratio, {result.reference}")
    else:
        print(f"{result.name}: {ratio.median:.3f} of {result.reference}")
        print(f"  quartiles        {ratio.low:.3f} to {ratio.high:.3f}")
    if result.limit_fraction is not None:
        print(f"  share of limit   {result.limit_fraction:.3f}")
    for name, value in result.details.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            # A table, which the benchmark prints as one.
            continue
        print(f"  {name:<16} {_short(value)}")
    write(result, file)


def write(result: Result, file: Path | None) -> None:
    """Write the file if one is named."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {_short(item)}" for name, item in value.items())
    if isinstance(value, list):
        return " to ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
