"""The composition root: settings in, a finished run out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from actors.cluster import StopRequest, ray_cluster
from actors.groups import WorkerGroups
from actors.prepare import Inputs, prepare_inputs
from actors.text import TextCodec
from equilibrate import driver
from equilibrate.assessment import Assessor, difference, read_assessment, sample_rows
from equilibrate.checkpoint import CheckpointStore, FolderLock
from equilibrate.config import RunConfig
from equilibrate.config_files import dump_config, load_run_config
from equilibrate.controllers import CostController, KLController
from equilibrate.errors import EXIT_STOPPED
from equilibrate.evaluation import Judge, check_disjoint
from equilibrate.fdc.dataset import read_prompts
from equilibrate.fdc.sampler import FdcSampler
from equilibrate.fdc.schedules import make_schedule
from equilibrate.report import (
    installed_versions,
    summarise_training,
    write_report,
    write_results,
)
from equilibrate.rollout_queue import RolloutQueue
from equilibrate.run_state import RunCheckpoints, settings_fixed_on_resume
from equilibrate.sinks import SAMPLES_FILE, open_sink, read_rows
from equilibrate.types import Prompt

PHASES_FILE = "phases.jsonl"
"""Seconds spent outside the loop."""


def train(config: RunConfig) -> int:
    """Make or find the inputs, train, export, evaluate and report; resumes what was begun.

    Returns: the exit code, 0 or EXIT_STOPPED.
    """
    run = Path(config.output).resolve()
    run.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(run)
    try:
        if _is_finished(run, config):
            print(f"{run} already holds this run; change a setting or the output to run again")
            return 0
        (run / "report.html").unlink(missing_ok=True)
        (run / "config.yaml").write_text(dump_config(config))
        with ray_cluster():
            return _train_on_cluster(config, run)
    finally:
        lock.release()


def evaluate(run: Path) -> int:
    """Sample base and aligned model of a finished run again, and write results and report anew."""
    config = load_run_config(run)
    with ray_cluster():
        inputs = prepare_inputs(config, run, _say)
        with WorkerGroups(config, inputs, only_rollouts=True) as groups:
            assessor = _make_assessor(config, run, inputs, groups, TextCodec(inputs.policy))
            # The versions that `train` measured: the same seeds, so the same answers.
            stages = (("base", inputs.policy, 0), ("aligned", run / "aligned", config.iterations))
            for name, folder, version in stages:
                groups.rollouts.sync(groups.weights_of_folder(folder, version))
                assessor.in_full(name, version)
    _write_outcome(config, run, assessor.prompts, inputs.judge)
    return 0


def _train_on_cluster(config: RunConfig, run: Path) -> int:
    stop = StopRequest()
    stop.install()
    with _measured(run, "prepare"):
        inputs = prepare_inputs(config, run, _say)
    if stop():
        return EXIT_STOPPED
    with (
        WorkerGroups(config, inputs) as groups,
        CheckpointStore(
            run / "checkpoints", config.keep_checkpoints, installed_versions()
        ) as store,
    ):
        parts, assessor = _make_parts(config, run, inputs, groups, store, stop)
        iteration = driver.train(
            parts,
            iterations=config.iterations,
            checkpoint_every=config.checkpoint_every,
            max_restarts=config.max_restarts,
        )
        if iteration < config.iterations:
            _say(f"stopped and saved at iteration {iteration}; the same command goes on from there")
            return EXIT_STOPPED
        with _measured(run, "finish"):
            parts.learner.export(run / "aligned")
            assessor.in_full("aligned", iteration)
        parts.sink.close()
    _write_outcome(config, run, assessor.prompts, inputs.judge)
    return 0


def _make_parts(
    config: RunConfig,
    run: Path,
    inputs: Inputs,
    groups: WorkerGroups,
    store: CheckpointStore,
    stop: Callable[[], bool],
) -> tuple[driver.Parts, Assessor]:
    codec = TextCodec(inputs.policy)
    prompts = _read(inputs.prompts, codec, config)
    assessor = _make_assessor(config, run, inputs, groups, codec)
    check_disjoint(prompts, assessor.prompts)
    sampler = _make_sampler(config, prompts)
    queue = RolloutQueue(
        sampler,
        groups.rollouts,
        max_policy_lag=config.rollout.max_policy_lag,
        iterations=config.iterations,
    )
    multiplier = CostController(config.constraint)
    kl = KLController(config.ppo.kl)
    sink = open_sink(run, iterations=config.iterations, wandb_project=config.wandb_project)
    checkpoints = RunCheckpoints(
        store,
        learner=groups.learner,
        queue=queue,
        sink=sink,
        stateful={"sampler": sampler, "multiplier": multiplier, "kl": kl},
        fixed=settings_fixed_on_resume(config),
    )
    parts = driver.Parts(
        sampler=sampler,
        rollouts=groups.rollouts,
        queue=queue,
        scorer=groups.scorer,
        learner=groups.learner,
        multiplier=multiplier,
        kl=kl,
        sink=sink,
        checkpoints=checkpoints,
        evaluate=assessor.at_iteration,
        should_stop=stop,
    )
    return parts, assessor


def _make_sampler(config: RunConfig, prompts: list[Prompt]) -> FdcSampler:
    return FdcSampler(
        prompts,
        make_schedule(config.fdc.schedule, config.fdc.mixture),
        prompts_per_iteration=config.rollout.prompts_per_iteration,
        copies=config.rollout.copies,
        iterations=config.iterations,
        when_short=config.fdc.when_short,
        seed=config.seed,
    )


def _make_assessor(
    config: RunConfig, run: Path, inputs: Inputs, groups: WorkerGroups, codec: TextCodec
) -> Assessor:
    prompts = _read(inputs.evaluation, codec, config) if inputs.evaluation else []
    return Assessor(
        run,
        prompts,
        rollouts=groups.rollouts,
        judge=inputs.judge,
        decode=codec.decode,
        every=config.evaluate_every,
    )


def _read(path: Path, codec: TextCodec, config: RunConfig) -> list[Prompt]:
    longest = config.rollout.max_model_len - config.rollout.max_new_tokens
    rows = read_prompts(path, codec.encode_prompt, max_tokens=longest)
    for reason, count in rows.dropped.items():
        _say(f"{path.name}: {count} prompts left out: {reason}")
    return rows.prompts


def _write_outcome(config: RunConfig, run: Path, prompts: Sequence[Prompt], judge: Judge) -> None:
    constraint = config.constraint
    if prompts:
        base, aligned = (read_assessment(run / f"{n}.json", prompts) for n in ("base", "aligned"))
        rows = sample_rows({"base": base, "aligned": aligned})
        (run / SAMPLES_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_results(
            run / "results.json",
            base=base.table,
            aligned=aligned.table,
            difference=difference(base, aligned),
            training=summarise_training(run, scope=constraint.scope if constraint else "all"),
            cost_budget=constraint.budget if constraint else None,
            stage_seconds=_stage_seconds(run),
            judge=judge.name,
            versions=installed_versions(),
            seed=config.seed,
        )
    _say(f"report: {write_report(run)}")


def _is_finished(run: Path, config: RunConfig) -> bool:
    written = run / "config.yaml"
    return (
        (run / "report.html").is_file()
        and written.is_file()
        and written.read_text() == dump_config(config)
    )


@contextmanager
def _measured(run: Path, phase: str) -> Iterator[None]:
    """Adds the seconds of a phase outside the loop, which a resumed run enters again."""
    start = time.perf_counter()
    yield
    with (run / PHASES_FILE).open("a") as file:
        file.write(json.dumps({phase: time.perf_counter() - start}) + "\n")


def _stage_seconds(run: Path) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for row in read_rows(run / PHASES_FILE):
        for phase, value in row.items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    return seconds


def _say(message: str) -> None:
    print(message, flush=True)
