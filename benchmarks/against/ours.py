"""Our own training, one iteration a turn: `actors.launch.train`, as a user runs it.

Two seams are opened: the loop asks for its turn before each iteration, and the rollout worker ends
every response at its drawn length.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.against.job import GROUP, Job
from benchmarks.against.turns import Turns

KV_CACHE_SLACK = 1.5


def main(job: Job, turns: Turns) -> None:
    from actors import groups, launch
    from equilibrate import driver
    from equilibrate.config.files import parse_config
    from equilibrate.run.sinks import METRICS_FILE, read_rows

    config = parse_config(settings(job))
    run_iteration = driver.run_iteration

    def run_in_turn(parts: driver.Parts, iteration: int) -> Any:
        turns.wait()
        update = run_iteration(parts, iteration)
        (row,) = read_rows(Path(job.output) / METRICS_FILE)[-1:]
        turns.add_tokens(round(row["response_length"] * job.rollouts))
        turns.done()
        return update

    driver.run_iteration = run_in_turn
    vars(groups)["RolloutWorker"] = worker_with(job.lengths)
    launch.train(config)


def worker_with(lengths: Sequence[Sequence[int]]) -> type:
    """A rollout worker whose responses have these lengths, row by row over all its calls."""
    from actors.rollout import RolloutWorker

    class RolloutWorkerOfLengths(RolloutWorker):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._lengths = chain.from_iterable(lengths)

        def _run(self, token_ids: Any, parameters: Any) -> Any:
            for parameter in parameters:
                parameter.max_tokens = next(self._lengths)
                parameter.stop_token_ids = []
                # Else the engine ends a response at the end token of the model.
                parameter.ignore_eos = True
            return super()._run(token_ids, parameters)

    return RolloutWorkerOfLengths


def settings(job: Job) -> dict[str, Any]:
    is_constrained = job.algorithm == "lagrangian"
    is_critic_free = job.algorithm == "grpo"
    copies = GROUP if is_critic_free else 1
    model_length = job.prompt_tokens + job.longest
    return {
        "output": job.output,
        "seed": job.seed,
        "dtype": job.dtype,
        "cpu_threads": job.threads,
        "iterations": job.iterations,
        "checkpoint_every": job.iterations,
        "evaluate_every": 0,
        "max_restarts": 0,
        "data": {
            "policy": job.policy,
            "reward": job.reward,
            "cost": job.cost if is_constrained else "",
            "prompts": job.prompts,
        },
        "rollout": {
            "prompts_per_iteration": job.rollouts // copies,
            "copies": copies,
            "max_new_tokens": job.longest,
            "max_model_len": model_length,
            "memory_gib": kv_cache_gib(job),
            "cpus": 0.5,
        },
        "scoring": {"cpus": 0.5},
        "learner": {"cpus": 0.5, "policy_lr": 1e-5, "critic_lr": 1e-5},
        "ppo": {
            "advantage": "grpo" if is_critic_free else "gae",
            "minibatch_size": job.minibatch_size,
            "epochs": job.epochs,
            "kl": {"type": "fixed", "coef": 0.02},
        },
        "constraint": {"type": "pid"} if is_constrained else None,
        "ama": None,
    }


def phase_medians(job: Job, iterations: Sequence[int]) -> dict[str, float]:
    """Seconds of each phase, and of the whole, over these iterations of a finished run."""
    from equilibrate.run.sinks import TIMINGS_FILE, read_rows

    seconds = [row["seconds"] for row in read_rows(Path(job.output) / TIMINGS_FILE)]
    counted = [seconds[iteration] for iteration in iterations]
    return {phase: median(row[phase] for row in counted) for phase in counted[0]}


def kv_cache_gib(job: Job) -> float:
    """Room for all responses of an iteration at once, and not less than a quarter GiB."""
    from benchmarks.limits import shape_of

    most_tokens = max(sum(row) + job.prompt_tokens * len(row) for row in job.lengths)
    needed = shape_of(job.policy).kv_bytes_per_token * most_tokens
    return max(0.25, KV_CACHE_SLACK * needed / 2**30)


if __name__ == "__main__":
    main(Job.read(sys.argv[1]), Turns())
