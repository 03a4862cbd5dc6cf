"""Our loop against the trainers of the peers: whole iterations, timed from outside, in one run.

Every system runs in a process of its own and does one iteration when it is given its turn; all have
the same models, tokenizer, prompts, response lengths, precision, epochs and minibatches. A peer
runs in an environment of its own, made from its lock when first needed; one that cannot start is
reported with its own error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.against.child import Child, SystemFailed
from benchmarks.against.job import GROUP, Job
from benchmarks.against.rounds import DIFFERENT_WORK, Rounds, compare, phase_table, play, table
from benchmarks.against.systems import OURS, PEERS, System, interpreter
from benchmarks.against.workload import (
    PROMPT_TOKENS,
    SEED,
    Setting,
    Shape,
    draw_lengths,
    mean_limits,
    write_equal_prompts,
    write_llamas,
)
from benchmarks.harness import (
    Quartiles,
    Result,
    make_parser,
    measure_roof,
    publish,
    settings_of,
    write,
)
from benchmarks.limits import ModelShape, Roof, shape_of
from equilibrate.config.train import PPOConfig

if TYPE_CHECKING:
    from benchmarks.workloads import ModelFolders

BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2}
LONGEST = {"fixed": 64, "ragged": 200}
PASS_ROWS = 2048
"""Tokens of a pass at which products reach their best rate here."""
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "layers": 2,
    "rollouts": [8],
    "longest": {"fixed": 8, "ragged": 40},
    "minibatch_size": 8,
    "repeats": 2,
    "warmups": 1,
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    result = measure(arguments)
    print(table(result.rows))
    print(phase_table(result.details["phases"]))
    publish(result, arguments.json)
    return int(any(DIFFERENT_WORK in (row["error"] or "") for row in result.rows))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    ours, peers = ([system.key for system in group] for group in (OURS, PEERS))
    parser.add_argument("--tiny", action="store_true", help="seconds of work, to see it run")
    parser.add_argument("--lengths", nargs="+", choices=[*LONGEST], default=[*LONGEST])
    parser.add_argument("--rollouts", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--ours", nargs="+", choices=ours, default=ours)
    parser.add_argument("--peers", nargs="+", choices=peers, default=peers)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--intermediate-size", type=int, default=768)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--minibatch-size", type=int, default=32, help="or all rollouts, if fewer")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--dtype", nargs="+", choices=[*BYTES_PER_NUMBER], default=[*BYTES_PER_NUMBER]
    )
    parser.add_argument(
        "--environments", type=Path, default=Path("runs/peers"), help="of the peers; made if absent"
    )
    parser.add_argument(
        "--deepspeed-chat", metavar="FOLDER", default="", help="its sources: it is no package"
    )
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one answer")
    parser.set_defaults(longest=LONGEST)
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        vars(arguments).update(TINY)
    if any(rollouts % GROUP for rollouts in arguments.rollouts):
        parser.error(f"--rollouts must be multiples of {GROUP}, the responses to one prompt")
    return arguments


def measure(arguments: argparse.Namespace) -> Result:
    import torch

    torch.set_num_threads(arguments.threads)
    size = Shape(
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.intermediate_size,
        layers=arguments.layers,
    )
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {"flops_per_second": {}, "phases": []}
    with TemporaryDirectory() as name:
        folder = Path(name)
        models = write_llamas(folder, size, max(arguments.longest.values()))
        write_equal_prompts(folder / "prompts.jsonl")
        shape = shape_of(models.policy)
        details["num_parameters"] = shape.num_parameters
        for setting in _settings(arguments):
            print(f"{setting.name}:", file=sys.stderr, flush=True)
            rounds, jobs, roof = _measure_setting(setting, folder, models, shape, arguments)
            limits = _limits(setting, jobs, shape, roof, rounds.counted, arguments)
            rows += _rows(setting, rounds, limits, arguments)
            details["phases"] += _phases(setting, rounds, jobs, limits)
            details["flops_per_second"][setting.name] = rounds.rates
            # Each block takes minutes: what is measured is not lost with what follows.
            write(_result(rows, details, arguments), arguments.json)
    return _result(rows, details, arguments)


def _result(
    rows: Sequence[Mapping[str, Any]], details: Mapping[str, Any], arguments: argparse.Namespace
) -> Result:
    lowest = lowest_ratio(rows)
    return Result(
        name="against",
        ratio=Quartiles(**lowest["ratio"]) if lowest else None,
        reference=(
            f"{lowest['peer']} at {lowest['rollouts']} {lowest['lengths']} in "
            f"{lowest['precision']}, the lowest PPO to PPO"
            if lowest
            else "no peer with PPO was compared"
        ),
        limit_fraction=None,
        config=settings_of(arguments),
        details=details,
        rows=rows,
    )


def _settings(arguments: argparse.Namespace) -> Iterator[Setting]:
    for dtype, lengths, rollouts in product(arguments.dtype, arguments.lengths, arguments.rollouts):
        setting = Setting(
            dtype=dtype, lengths=lengths, longest=arguments.longest[lengths], rollouts=rollouts
        )
        if _taking_part(PEERS, setting, arguments):
            yield setting


def _taking_part(
    systems: Sequence[System], setting: Setting, arguments: argparse.Namespace
) -> list[System]:
    keys = (*arguments.ours, *arguments.peers)
    return [s for s in systems if s.key in keys and setting.dtype in s.dtypes]


def lowest_ratio(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The comparison of our plain PPO with a peer's that is worst for us."""
    names = {system.name for system in PEERS if system.algorithm == "ppo"}
    same = [r for r in rows if r["ratio"] and r["ours"] == OURS[0].name and r["peer"] in names]
    return min(same, key=lambda row: row["ratio"]["median"], default=None)


def _measure_setting(
    setting: Setting,
    folder: Path,
    models: ModelFolders,
    shape: ModelShape,
    arguments: argparse.Namespace,
) -> tuple[Rounds, dict[str, Job], Roof]:
    """What was measured, the job of each system by its name, and the best rates of the machine."""
    max_rounds = arguments.warmups + 2 * arguments.repeats
    # One more than there are turns: the last one, too, ends with a wait.
    lengths = draw_lengths(setting, max_rounds + 1)
    systems = _taking_part((*OURS, *PEERS), setting, arguments)
    # Of a step of generation, and of a full pass: narrow products are far slower in bfloat16.
    gemms = [*shape.gemm_shapes(setting.rollouts), *shape.gemm_shapes(PASS_ROWS)]
    roofs: list[Roof] = []

    def rate() -> float:
        roofs.append(measure_roof(gemms, setting.dtype))
        return roofs[-1].flops_per_second

    with ExitStack() as stack:
        children: dict[str, Child] = {}
        errors: dict[str, str] = {}
        jobs: dict[str, Job] = {}
        for system in systems:
            job = _job(system, setting, lengths, folder, models, arguments)
            jobs[system.name] = job
            try:
                child = _start(system, job, Path(job.output), arguments)
                stack.callback(child.close)
                child.wait_until_ready()
                children[system.name] = child
            except SystemFailed as error:
                errors[system.name] = str(error)
                print(f"  {system.name}: {error}", file=sys.stderr, flush=True)
        rounds = play(
            children,
            rate,
            repeats=arguments.repeats,
            warmups=arguments.warmups,
            max_rounds=max_rounds,
        )
    rounds.errors |= errors
    best = Roof(
        flops_per_second=max(roof.flops_per_second for roof in roofs),
        bytes_per_second=max(roof.bytes_per_second for roof in roofs),
    )
    return rounds, jobs, best


def _job(
    system: System,
    setting: Setting,
    lengths: list[list[int]],
    folder: Path,
    models: ModelFolders,
    arguments: argparse.Namespace,
) -> Job:
    output = folder / f"{setting.name}-{system.key}"
    output.mkdir()
    return Job(
        algorithm=system.algorithm,
        policy=models.policy,
        reward=models.reward,
        cost=models.cost,
        prompts=str(folder / "prompts.jsonl"),
        prompt_tokens=PROMPT_TOKENS,
        lengths=lengths,
        longest=setting.longest,
        minibatch_size=min(arguments.minibatch_size, setting.rollouts),
        epochs=arguments.epochs,
        dtype=setting.dtype,
        threads=arguments.threads,
        seed=SEED,
        output=str(output),
        peer_path=arguments.deepspeed_chat,
    )


def _start(system: System, job: Job, output: Path, arguments: argparse.Namespace) -> Child:
    python = interpreter(system, arguments.environments)
    job.write(output / "job.json")
    return Child(
        [str(python), "-m", f"benchmarks.against.{system.module}", str(output / "job.json")],
        log=output / "log.txt",
        threads=arguments.threads,
        timeout_seconds=arguments.timeout,
    )


def _limits(
    setting: Setting,
    jobs: Mapping[str, Job],
    shape: ModelShape,
    roof: Roof,
    counted: Sequence[int],
    arguments: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Least seconds of each phase over the counted rounds, by the name of our mode."""
    if not counted:
        return {}
    found = {}
    shape = replace(shape, bytes_per_number=BYTES_PER_NUMBER[setting.dtype])
    for mode in _taking_part(OURS, setting, arguments):
        job = jobs[mode.name]
        scorers = 2 if mode.algorithm == "lagrangian" else 1
        found[mode.name] = mean_limits(
            shape,
            roof,
            [job.lengths[number] for number in counted],
            scorers=scorers,
            critics=0 if mode.algorithm == "grpo" else scorers,
            epochs=job.epochs,
            is_only_step=PPOConfig(
                minibatch_size=job.minibatch_size, epochs=job.epochs
            ).takes_one_step(job.rollouts),
        )
    return found


def _rows(
    setting: Setting,
    rounds: Rounds,
    limits: Mapping[str, Mapping[str, float]],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    rows = []
    for mode in (system.name for system in _taking_part(OURS, setting, arguments)):
        for peer in _taking_part(PEERS, setting, arguments):
            row = compare(rounds, mode, peer.name)
            if row["ratio"]:
                limit = sum(limits[mode].values())
                row["limit_fraction"] = limit / row["our_seconds"]["median"]
            rows.append(setting.block | row)
    return rows


def _phases(
    setting: Setting,
    rounds: Rounds,
    jobs: Mapping[str, Job],
    limits: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Where the iterations of our modes go: median seconds of each phase, and its limit."""
    from benchmarks.against.ours import phase_medians

    return [
        setting.block
        | {
            "ours": mode,
            "seconds": phase_medians(jobs[mode], rounds.counted[: len(rounds.turns[mode])]),
        }
        | {"limits": dict(limit)}
        for mode, limit in limits.items()
        if rounds.turns.get(mode)
    ]


if __name__ == "__main__":
    sys.exit(main())
