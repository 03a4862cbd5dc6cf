"""How much of an iteration is rollout, scoring, update and sync, and how much nobody claims.

Trains the main job's shapes for a few iterations on untrained models, or reads a run that is there
already (`--run FOLDER`). The ratio is (rollout + score + update + sync) / iteration: what a loop
without any cost of its own would take, against ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import Quartiles, Result, RoofWatch, make_parser, publish, settings_of
from benchmarks.limits import PHASES, ModelShape, Roof, phase_seconds, shape_of

PROMPTS_PER_CLASS = 500


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path, help="read this run folder instead of training")
    parser.add_argument("--config", default="deploy/configs/sandbox.yaml")
    parser.add_argument("overrides", nargs="*", help="of the config, key=value")
    arguments = parser.parse_args(argv)
    publish(measure(arguments), arguments.json)


def measure(arguments: argparse.Namespace) -> Result:
    if arguments.run:
        return _measure_run(arguments.run, arguments)
    with TemporaryDirectory() as folder:
        return _train_and_measure(Path(folder), arguments)


def _train_and_measure(folder: Path, arguments: argparse.Namespace) -> Result:
    import torch

    from actors.launch import train
    from benchmarks.workloads import write_models, write_prompts
    from equilibrate.config.files import load_config

    models = write_models(folder)
    write_prompts(folder / "prompts.jsonl", PROMPTS_PER_CLASS)
    iterations = arguments.warmups + arguments.repeats
    overrides = [
        f"output={folder / 'run'}",
        f"iterations={iterations}",
        f"checkpoint_every={iterations}",
        f"cpu_threads={arguments.threads}",
        f"data.policy={models.policy}",
        f"data.reward={models.reward}",
        f"data.cost={models.cost}",
        f"data.prompts={folder / 'prompts.jsonl'}",
        *arguments.overrides,
    ]
    config = load_config([arguments.config], overrides)
    torch.set_num_threads(arguments.threads)
    watch = RoofWatch(shape_of(models.policy).gemm_shapes(config.rollouts_per_iteration))
    train(config)
    return _result(Path(config.output), config, *watch.finish(), arguments)


def _measure_run(run: Path, arguments: argparse.Namespace) -> Result:
    import torch

    from equilibrate.config.files import load_config

    config = load_config([run / "config.yaml"])
    torch.set_num_threads(config.cpu_threads)
    # Today's roof: what it was during the run is not known.
    shape = shape_of(run / "aligned")
    watch = RoofWatch(shape.gemm_shapes(config.rollouts_per_iteration))
    return _result(run, config, *watch.finish(), arguments)


def _result(
    run: Path, config: Any, roof: Roof, about_roof: Mapping[str, Any], arguments: argparse.Namespace
) -> Result:
    from equilibrate.run.sinks import METRICS_FILE, TIMINGS_FILE, read_rows

    seconds = [row["seconds"] for row in read_rows(run / TIMINGS_FILE)][arguments.warmups :]
    if not seconds:
        raise SystemExit(f"{run} holds no timings beyond its first {arguments.warmups} iterations")
    metrics = read_rows(run / METRICS_FILE)[arguments.warmups :]
    lengths = (
        mean_prompt_tokens(run, config),
        round(fmean(row["response_length"] for row in metrics)),
    )
    limit = limit_seconds(shape_of(run / "aligned"), roof, config, lengths)
    shares = phase_shares(seconds)
    medians = {name: median(row[name] for row in seconds) for name in (*PHASES, "iteration")}
    ratio = Quartiles.of(claimed_shares(seconds))
    return Result(
        name="end_to_end",
        ratio=ratio,
        reference="the sum of rollout, score, update and sync",
        limit_fraction=limit / medians["iteration"],
        config=settings_of(arguments) | {"iterations": len(seconds), "seed": config.seed},
        details={
            "unclaimed_share": 1 - ratio.median,
            "sync_share": shares["sync"],
            "seconds": medians,
            "shares": shares,
            "limit_seconds": limit,
            "prompt_tokens": lengths[0],
            "response_tokens": lengths[1],
            "roof": about_roof,
        },
    )


def claimed_shares(seconds: Sequence[Mapping[str, float]]) -> list[float]:
    """Per iteration, the share that the four phases account for."""
    return [sum(row[phase] for phase in PHASES) / row["iteration"] for row in seconds]


def phase_shares(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median over iterations of the share of each phase."""
    return {phase: median(row[phase] / row["iteration"] for row in seconds) for phase in PHASES}


def limit_seconds(shape: ModelShape, roof: Roof, config: Any, lengths: tuple[int, int]) -> float:
    """Least seconds of an iteration, were every response as long as the mean one.

    The longest decides the true number of steps, so the limit is no higher than the real one.
    """
    count, (prompt, response) = config.rollouts_per_iteration, lengths
    scorers = 1 if config.constraint is None else 2
    limits = phase_seconds(
        shape,
        roof,
        [prompt] * count,
        [response] * count,
        scorers=scorers,
        critics=scorers if config.ppo.has_critics else 0,
        epochs=config.ppo.epochs,
        is_only_step=config.ppo.takes_one_step(count),
    )
    return sum(limits.values())


def mean_prompt_tokens(run: Path, config: Any) -> int:
    """Mean length of the training prompts, in tokens of the run's own tokenizer."""
    from equilibrate.config.inputs import plain
    from equilibrate.run.folder import read_fitting
    from equilibrate.text.renderer import Renderer

    files = config.data.prompts or plain(next((run / "stages").glob("world-*/prompts")))
    prompts = read_fitting(files, Renderer(run / "aligned", config.text), config, None)
    return round(fmean(len(prompt.token_ids) for prompt in prompts))


if __name__ == "__main__":
    main()
