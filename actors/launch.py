"""The composition root: settings in, a finished run out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from actors.cluster import StopRequest, ray_cluster
from actors.groups import WorkerGroups
from actors.prepare import Inputs, prepare_inputs, shared_base, stages_of
from actors.run_folder import claimed, measured, read_fitting, say, write_outcome
from actors.text import TextCodec
from actors.workbench import Workbench
from equilibrate import driver
from equilibrate.assessment import Assessor
from equilibrate.checkpoint import CheckpointStore
from equilibrate.config import RunConfig
from equilibrate.controllers import CostController, KLController
from equilibrate.errors import EXIT_STOPPED
from equilibrate.evaluation import Judge, check_disjoint
from equilibrate.fdc.sampler import FdcSampler
from equilibrate.fdc.schedules import make_schedule
from equilibrate.report import installed_versions, summarise_training
from equilibrate.rollout_queue import RolloutQueue
from equilibrate.run_state import RunCheckpoints, settings_fixed_on_resume
from equilibrate.sinks import open_sink
from equilibrate.types import Prompt


def train(config: RunConfig, stages: Path | None = None, bench: Workbench | None = None) -> int:
    """Make or find the inputs, train, export, evaluate and report; resumes what was begun.

    Args:
        stages: folder of what precedes PPO, if several runs share it; by default the run's own.
        bench: generator and scorers of these settings and inputs, if several runs share them.
    Returns: the exit code, 0 or EXIT_STOPPED.
    """
    with claimed(config) as run:
        if run is None:
            return 0
        with ray_cluster():
            return _train_on_cluster(config, run, stages or stages_of(run), bench)


def evaluate(config: RunConfig, run: Path, judge: Judge | None = None) -> int:
    """Sample base and aligned model of a finished run again, and write results and report anew."""
    with ray_cluster():
        inputs = prepare_inputs(config, stages_of(run), say)
        inputs = replace(inputs, judge=judge or inputs.judge)
        with WorkerGroups(config, inputs, roles=("rollout",)) as groups:
            assessor = _make_assessor(config, run, inputs, groups, TextCodec(inputs.policy))
            # The versions that `train` measured: the same seeds, so the same answers.
            stages = (("base", inputs.policy, 0), ("aligned", run / "aligned", config.iterations))
            for name, folder, version in stages:
                groups.rollouts.sync(groups.weights_of_folder(folder, version))
                assessor.in_full(name, version)
    _report(config, run, assessor.prompts, inputs.judge)
    return 0


def _train_on_cluster(config: RunConfig, run: Path, stages: Path, bench: Workbench | None) -> int:
    stop = StopRequest()
    stop.install()
    with measured(run, "prepare"):
        inputs = prepare_inputs(config, stages, say)
        inputs = replace(inputs, shared_base=shared_base(config, inputs, stages))
    if stop():
        return EXIT_STOPPED
    with (
        _groups_of(config, inputs, bench) as groups,
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
            say(f"stopped and saved at iteration {iteration}; the same command goes on from there")
            return EXIT_STOPPED
        with measured(run, "finish"):
            parts.learner.export(run / "aligned")
            assessor.in_full("aligned", iteration)
        parts.sink.close()
    _report(config, run, assessor.prompts, inputs.judge)
    return 0


@contextmanager
def _groups_of(
    config: RunConfig, inputs: Inputs, bench: Workbench | None
) -> Iterator[WorkerGroups]:
    """Those of the bench, which stay, or the run's own."""
    if bench is not None:
        yield bench.groups_for(config)
        return
    with WorkerGroups(config, inputs) as groups:
        yield groups


def _report(config: RunConfig, run: Path, prompts: Sequence[Prompt], judge: Judge) -> None:
    constraint = config.constraint
    write_outcome(
        config,
        run,
        prompts,
        judge,
        training=summarise_training(run, scope=constraint.scope if constraint else "all"),
        cost_budget=constraint.budget if constraint else None,
    )


def _make_parts(
    config: RunConfig,
    run: Path,
    inputs: Inputs,
    groups: WorkerGroups,
    store: CheckpointStore,
    stop: Callable[[], bool],
) -> tuple[driver.Parts, Assessor]:
    codec = TextCodec(inputs.policy)
    prompts = read_fitting(inputs.prompts, codec, config.rollout)
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
    prompts = read_fitting(inputs.evaluation, codec, config.rollout) if inputs.evaluation else []
    return Assessor(
        run,
        prompts,
        rollouts=groups.rollouts,
        judge=inputs.judge,
        decode=codec.decode,
        every=config.evaluate_every,
        shared_base=inputs.shared_base,
    )
