"""What the driver loop costs with 1 to 64 workers that only sleep, or more in shared processes.

The real loop, pools, sampler, controllers and sink; each stub plays rollout worker, scoring worker
and learner rank. By default it is a process of its own; with `--per-process` several sleep in
threads of one: as many messages, but fewer connections, so the driver's cost is then a lower bound.
The batch stays the same, so an ideal loop would take as long with any number of workers; what it
takes longer is the price of talking to them. All stubs live on this machine and share its cores
with the driver: the CPU seconds of the driver's process alone are given beside the wall clock.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import Quartiles, Result, make_parser, positive, publish, settings_of
from benchmarks.limits import PHASES

TIMEOUT_SECONDS = 600.0
RESPONSE_TOKENS = 32
PROMPT_TOKENS = 12


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("workers", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--batch", type=int, default=64, help="rollouts of an iteration")
    parser.add_argument("--per-process", type=positive, default=1, help="stubs of one process")
    parser.add_argument("--weight-bytes", type=int, default=3_300_000)
    parser.add_argument(
        "--seconds",
        type=float,
        nargs=len(PHASES),
        default=[0.4, 0.1, 0.4, 0.02],
        metavar=("ROLLOUT", "SCORE", "UPDATE", "SYNC"),
        help="that each phase sleeps",
    )
    arguments = parser.parse_args(argv)
    arguments.workers = sorted({1, *arguments.workers})
    publish(measure(arguments), arguments.json)


def measure(arguments: argparse.Namespace) -> Result:
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        with TemporaryDirectory() as folder:
            return _measure_loops(Path(folder), arguments)
    finally:
        ray.shutdown()


def _measure_loops(folder: Path, arguments: argparse.Namespace) -> Result:
    phases = dict(zip(PHASES, arguments.seconds, strict=True))
    actors = _start_stubs(
        max(arguments.workers), phases, arguments.weight_bytes, arguments.per_process
    )
    loops = {
        count: Loop(folder / str(count), actors[:count], arguments.batch)
        for count in arguments.workers
    }
    # Sizes take turns, like ours and the reference elsewhere.
    for _ in range(arguments.warmups + arguments.repeats):
        for loop in loops.values():
            loop.run_one()
    ideal, largest = sum(phases.values()), arguments.workers[-1]
    wall = {n: loop.wall_seconds[-arguments.repeats :] for n, loop in loops.items()}
    cpu = {n: loop.cpu_seconds[-arguments.repeats :] for n, loop in loops.items()}
    overheads = {n: Quartiles.of(values).median - ideal for n, values in wall.items()}
    return Result(
        name="driver_cost",
        ratio=Quartiles.of([a / b for a, b in zip(wall[1], wall[largest], strict=True)]),
        reference="the same loop with one worker",
        limit_fraction=ideal / Quartiles.of(wall[largest]).median,
        config=settings_of(arguments),
        details={
            "ideal_seconds": ideal,
            "overhead_seconds": {str(n): seconds for n, seconds in overheads.items()},
            "driver_cpu": {str(n): Quartiles.of(values).median for n, values in cpu.items()},
            # Of this process, with the loops of all sizes in it.
            "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
            "growth": growth(overheads),
            "is_sub_linear": growth(overheads) < largest,
        },
    )


def growth(overheads: Mapping[int, float]) -> float:
    """How many times the overhead of the fewest workers the most workers have."""
    return overheads[max(overheads)] / overheads[min(overheads)]


def _start_stubs(
    count: int, seconds: Mapping[str, float], weight_bytes: int, per_process: int
) -> list[Any]:
    """A handle for each stub; those of one process share theirs, as stubs have no state."""
    from actors.handles import Worker, wait_for_start
    from benchmarks.stubs import StubWorker

    make = partial(StubWorker, seconds, response_tokens=RESPONSE_TOKENS, weight_bytes=weight_bytes)
    options = {"num_cpus": 0, "max_concurrency": per_process}
    stubs = [
        Worker(f"stub {number}", make, options=options, environment={})
        for number in range(math.ceil(count / per_process))
    ]
    if late := wait_for_start(stubs, [], seconds=TIMEOUT_SECONDS):
        raise SystemExit(f"{len(late)} stubs did not start within {TIMEOUT_SECONDS} s")
    return [stubs[index // per_process] for index in range(count)]


class Loop:
    """One driver loop over some stubs, run an iteration at a time."""

    def __init__(self, folder: Path, actors: Sequence[Any], batch: int) -> None:
        from equilibrate.run.sinks import RunSink

        self._checkpoints = NoCheckpoints()
        self.wall_seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        loop = self

        class Sink(RunSink):
            def write_seconds(self, iteration: int, seconds: Mapping[str, float]) -> None:
                super().write_seconds(iteration, seconds)
                loop.wall_seconds.append(seconds["iteration"])
                loop.cpu_seconds.append(time.process_time() - loop._cpu_start)

        self._parts = _make_parts(Sink(folder), self._checkpoints, actors, batch, self._note_start)
        self._cpu_start = 0.0

    def _note_start(self, iteration: int) -> None:
        self._cpu_start = time.process_time()

    def run_one(self) -> None:
        from equilibrate.driver import train

        train(
            self._parts,
            iterations=self._checkpoints.iteration + 1,
            checkpoint_every=1_000_000,
            max_restarts=0,
        )


class NoCheckpoints:
    """Remembers where the loop is, and writes nothing: checkpoints are not what is measured."""

    iteration = 0

    def save(self, iteration: int) -> None:
        self.iteration = iteration

    try_save = save

    def restore(self) -> int:
        return self.iteration


def _make_parts(
    sink: Any, checkpoints: NoCheckpoints, actors: Sequence[Any], batch: int, evaluate: Any
) -> Any:
    from actors.pools import RayLearnerGroup, RayRolloutPool, RayScorer, Watch, WorkerPool
    from equilibrate.config.constraint import PidMultiplier
    from equilibrate.config.train import FdcConfig, FixedKL
    from equilibrate.driver import Parts
    from equilibrate.fdc.sampler import FdcSampler
    from equilibrate.fdc.schedules import make_schedule
    from equilibrate.run.controllers import CostController, KLController, KLStop
    from equilibrate.run.queue import RolloutQueue
    from equilibrate.run.watch import RunWatch
    from equilibrate.seeds import request_seed
    from equilibrate.types import Category, Prompt

    prompts = [
        Prompt(prompt_id=f"{c}{i}", text="", token_ids=(1,) * PROMPT_TOKENS, category=c)
        for c in Category
        for i in range(1000)
    ]
    watch = Watch(seconds=lambda phase: TIMEOUT_SECONDS, folder=Path("."))

    def pool() -> WorkerPool[Any]:
        return WorkerPool(
            lambda index: actors[index], num_workers=len(actors), watch=watch, max_restarts=0
        )

    schedule = make_schedule("fixed", FdcConfig().mixture)
    sampler = FdcSampler(prompts, schedule, prompts_per_iteration=batch, iterations=1)
    rollouts = RayRolloutPool(pool(), partial(request_seed, 0))
    return Parts(
        sampler=sampler,
        queue=RolloutQueue(sampler, rollouts, max_policy_lag=0, iterations=1),
        scorer=RayScorer(pool()),
        learner=RayLearnerGroup(lambda divisor: list(actors), watch=watch, max_restarts=0),
        multiplier=CostController(PidMultiplier()),
        kl=KLController(FixedKL()),
        sink=sink,
        watch=RunWatch({}, None),
        checkpoints=checkpoints,
        early_stop=KLStop(None),
        evaluate=evaluate,
        should_stop=lambda: False,
    )


if __name__ == "__main__":
    main()
