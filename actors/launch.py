"""The composition root: settings in, a finished run out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from actors.cluster import StopRequest, ray_cluster
from actors.groups import WorkerGroups
from actors.prepare import Inputs, contents_of, prepare_inputs
from equilibrate import driver
from equilibrate.config.identity import fixed_on_resume
from equilibrate.config.sources import reads_text
from equilibrate.config.train import TrainConfig
from equilibrate.errors import EXIT_STOPPED
from equilibrate.evaluation import Judge, check_disjoint
from equilibrate.interfaces import Generator
from equilibrate.models.sidecar import read_sidecar
from equilibrate.planner.commands import warn_of_memory
from equilibrate.report import summarise_training
from equilibrate.report.results import write_outcome
from equilibrate.run.assessment import Assessor
from equilibrate.run.capacity import check_this_machine
from equilibrate.run.checkpoint import CheckpointStore
from equilibrate.run.contents import Contents
from equilibrate.run.controllers import CostController, KLController, KLStop, why_stopped
from equilibrate.run.door import check_inputs
from equilibrate.run.folder import measured, own_run_folder, read_fitting, say, stages_of
from equilibrate.run.inputs import make_sampler
from equilibrate.run.judging import in_pool
from equilibrate.run.policies import with_whole_policy
from equilibrate.run.queue import AverageRollouts, RolloutQueue
from equilibrate.run.sinks import open_sink
from equilibrate.run.space import require_space
from equilibrate.run.state import RunCheckpoints, Stateful
from equilibrate.run.versions import installed_versions
from equilibrate.run.watch import RunWatch
from equilibrate.text.renderer import Renderer
from equilibrate.types import Prompt, ScorerKind


def train(config: TrainConfig) -> int:
    """Make or find the inputs, train, export, evaluate and report; resumes what was begun.

    Returns: the exit code, 0 or EXIT_STOPPED.
    """
    config = with_whole_policy(config)
    with own_run_folder(config) as run:
        if run is None:
            return 0
        check_this_machine(config)
        check_inputs(config, run)
        require_space(config)
        warn_of_memory(config)
        with ray_cluster():
            stop = StopRequest()
            stop.install()
            with measured(run, "prepare"):
                inputs = prepare_inputs(config, stages_of(run), say)
            if stop():
                return EXIT_STOPPED
            with WorkerGroups(config, inputs) as groups:
                return train_with(config, run, inputs, groups, stop)


def train_with(
    config: TrainConfig,
    run: Path,
    inputs: Inputs,
    groups: WorkerGroups,
    stop: Callable[[], bool],
) -> int:
    """Train and measure one policy in its folder `run`; the exit code, 0 or EXIT_STOPPED."""
    with CheckpointStore(
        run / "checkpoints", config.keep_checkpoints, installed_versions()
    ) as store:
        parts, assessor = _make_parts(config, run, inputs, groups, store, stop)
        # Also of a run that fails: another may follow in this process.
        with closing(parts.sink):
            iteration = driver.train(
                parts,
                iterations=config.iterations,
                checkpoint_every=config.checkpoint_every,
                max_restarts=config.max_restarts,
            )
            if iteration < config.iterations and not parts.early_stop.is_reached:
                done = f"stopped and saved at iteration {iteration}"
                say(f"{done}; the same command goes on from there")
                return EXIT_STOPPED
            with measured(run, "finish"):
                parts.learner.export(run / "aligned", averaged=True)
                if config.learner.average_decay:
                    parts.learner.export(run / "last")
                    groups.rollouts.sync(groups.weights_of_folder(run / "aligned", iteration))
                # The learner is not needed any more: a rank lost now must not cost the run.
                assessor.in_full("aligned", iteration, groups.rollouts)
    _report(config, run, assessor.prompts, inputs.judge)
    return 0


def evaluate(config: TrainConfig, run: Path, judge: Judge | None = None) -> int:
    """Sample base and aligned model of a finished run again, and write results and report anew."""
    with ray_cluster():
        inputs = prepare_inputs(config, stages_of(run), say)
        inputs = replace(inputs, judge=judge or inputs.judge, shared_base=None)
        with WorkerGroups(config, inputs, roles=("rollout",)) as groups:
            renderer = Renderer(inputs.policy, config.text)
            assessor = _make_assessor(config, run, inputs, groups.rollouts, renderer)
            # The versions that `train` measured: the same seeds, so the same answers.
            reached = summarise_training(run).iterations or config.iterations
            stages = (("base", inputs.policy, 0), ("aligned", run / "aligned", reached))
            for name, folder, version in stages:
                groups.rollouts.sync(groups.weights_of_folder(folder, version))
                assessor.in_full(name, version)
    _report(config, run, assessor.prompts, inputs.judge)
    return 0


def _report(config: TrainConfig, run: Path, prompts: Sequence[Prompt], judge: Judge) -> None:
    constraint = config.constraint
    training = summarise_training(run, scope=constraint.scope if constraint else "all")
    stopped_early = why_stopped(config, training.iterations, training.kl_final)
    if stopped_early:
        say(f"ended early: {stopped_early}")
    write_outcome(
        config,
        run,
        prompts,
        judge,
        training=training,
        stopped_early=stopped_early,
        cost_budget=constraint.budget if constraint else None,
        max_unsafe_share=constraint.max_unsafe_share if constraint else None,
    )


def _make_parts(
    config: TrainConfig,
    run: Path,
    inputs: Inputs,
    groups: WorkerGroups,
    store: CheckpointStore,
    stop: Callable[[], bool],
) -> tuple[driver.Parts, Assessor]:
    renderer = Renderer(inputs.policy, config.text)
    prompts = read_fitting(inputs.prompts, renderer, config, run)
    sampler = make_sampler(config, prompts)
    lag, iterations = config.rollout.max_policy_lag, config.iterations
    queue = RolloutQueue(sampler, groups.rollouts, max_policy_lag=lag, iterations=iterations)
    rollouts: Generator = groups.rollouts
    if config.learner.average_decay:
        rollouts = AverageRollouts(groups.rollouts, queue, groups.learner)
    at_once = config.rollouts_per_iteration
    judge = in_pool(inputs.judge, config.judge, groups.scorer, at_once=at_once)
    assessor = _make_assessor(config, run, replace(inputs, judge=judge), rollouts, renderer)
    check_disjoint(prompts, assessor.prompts)
    multiplier, kl = CostController(config.constraint), KLController(config.ppo.kl)
    early_stop = KLStop(config.ppo.kl.stop_at)
    watch = RunWatch(_calibrations(inputs), config.constraint)
    sink = open_sink(run, iterations=iterations, wandb_project=config.wandb_project)
    stateful: dict[str, Stateful] = {"sampler": sampler, "multiplier": multiplier, "kl": kl}
    stateful |= {"watch": watch, "early_stop": early_stop}
    checkpoints = RunCheckpoints(
        store,
        learner=groups.learner,
        queue=queue,
        sink=sink,
        stateful=stateful,
        fixed=fixed_on_resume(config) | contents_of(inputs, Contents(stages_of(run))),
        defaults=fixed_on_resume(TrainConfig()),
    )
    parts = driver.Parts(
        sampler=sampler,
        queue=queue,
        scorer=groups.scorer,
        learner=groups.learner,
        multiplier=multiplier,
        kl=kl,
        sink=sink,
        watch=watch,
        checkpoints=checkpoints,
        early_stop=early_stop,
        evaluate=assessor.at_iteration,
        should_stop=stop,
    )
    return parts, assessor


def _calibrations(inputs: Inputs) -> dict[ScorerKind, Mapping[str, float]]:
    folders: dict[ScorerKind, Path | str | None] = {"reward": inputs.reward, "cost": inputs.cost}
    return {
        kind: {} if reads_text(folder) else read_sidecar(Path(folder), kind=kind).calibration
        for kind, folder in folders.items()
        if folder
    }


def _make_assessor(
    config: TrainConfig, run: Path, inputs: Inputs, rollouts: Generator, renderer: Renderer
) -> Assessor:
    prompts = []
    if inputs.evaluation:
        prompts = read_fitting(inputs.evaluation, renderer, config, run)
    return Assessor(
        run,
        prompts,
        rollouts=rollouts,
        judge=inputs.judge,
        decode=renderer.decode,
        every=config.evaluate_every,
        shared_base=inputs.shared_base,
    )
