"""Carrying out a study: its runs as Ray tasks, their results in one file, page and summary."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from actors.cluster import StopRequest, ray_cluster
from actors.fit import fit_with
from actors.launch import train_with
from actors.prepare import (
    FitInputs,
    Inputs,
    Models,
    prepare_fit_inputs,
    prepare_inputs,
)
from actors.workbench import Workbench
from equilibrate.config.files import RUN_KINDS, parse_settings, resolve_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.formats import SETTINGS_FORMAT
from equilibrate.config.study import StudyConfig, read_base
from equilibrate.config.train import TrainConfig
from equilibrate.config.training import TrainingGroup
from equilibrate.errors import EXIT_STOPPED, ConfigError, EquilibrateError
from equilibrate.evaluation import EvaluationTable
from equilibrate.report.inputs import RESULTS_FILE
from equilibrate.report.origin import commit, machine
from equilibrate.run.capacity import Demand, total_of
from equilibrate.run.checkpoint import FolderLock
from equilibrate.run.contents import Contents
from equilibrate.run.door import check_inputs
from equilibrate.run.folder import STAGES, own_run_folder, say, stages_of
from equilibrate.run.sinks import write_whole
from equilibrate.study import (
    PlannedRun,
    RunResult,
    deal_tasks,
    expand,
    missing_runs,
    next_task,
    plan_runs,
    read_results,
    summary_markdown,
    take_in,
    time_left,
    with_section,
    write_page,
    write_result,
)

LOOK_EVERY_SECONDS = 5.0
"""How often the results are counted while runs are under way."""
GROUPS = ("rollout", "scoring", "learner", "trainer")
"""Settings that say what a run reserves in the cluster."""
BESIDE = ("cost_mean", "multiplier_final", "parity_gap_nats_max")
"""What `results.json` says beside its tables and is kept with the numbers of the training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Runs that one process makes, one after another."""

    runs: tuple[PlannedRun, ...]
    output: str
    stages: str
    results: str
    commit: str | None
    """Of the code that is at work."""

    @property
    def seed(self) -> int:
        return self.runs[0].seed


def run_study(
    study: StudyConfig,
    *,
    report_only: bool = False,
    document: Path | None = None,
    take_in_from: Path | None = None,
) -> int:
    """Make every run that has no result yet, then the page and the summary.

    Args:
        document: a Markdown file in which the summary becomes one section, the rest staying.
        take_in_from: results made elsewhere, added to those of the study first.

    A run that fails does not stop the others; it is named at the end.
    Returns: the exit code: 0, or that of the first failure.
    Raises: ConfigError for an arm whose settings break a rule, or a document that cannot be
    written, before anything runs.
    """
    if document is not None and (document.is_dir() or not document.parent.is_dir()):
        raise ConfigError(f"document ({document}) must be a file in a folder that exists")
    specs = expand(study, read_base(study))
    runs = plan_runs(specs, resolve_settings, Contents(stages_of_study(study)).of)
    _require_measured(runs)
    output = Path(study.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    code = 0
    if take_in_from is not None:
        added = take_in(Path(study.results), take_in_from)
        say(f"{study.results}: {added} results added from {take_in_from}")
    if not report_only:
        with _alone_in(output, stages_of_study(study)):
            code = _make_runs(study, runs)
    results = read_results(Path(study.results), resolve_settings)
    page = write_page(output / "study.html", study, runs, results)
    summary, path = summary_markdown(study, runs, results), output / "study.md"
    write_whole(path, summary + "\n")
    say(f"page: {page}\nsummary: {path}")
    if document is not None:
        text = document.read_text(encoding="utf-8") if document.exists() else ""
        write_whole(document, with_section(text, study.name, summary))
        say(f"section: {document}")
    return code


def stages_of_study(study: StudyConfig) -> Path:
    return Path(study.stages or Path(study.output, STAGES)).resolve()


@contextmanager
def _alone_in(*folders: Path) -> Iterator[None]:
    """Raises: ResourceError if another study is at work in one of the folders."""
    with ExitStack() as held:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            held.callback(FolderLock(folder).release)
        yield


def _make_runs(study: StudyConfig, runs: Sequence[PlannedRun]) -> int:
    results = read_results(Path(study.results).resolve(), resolve_settings)
    left = missing_runs(runs, results)
    say(f"{study.name}: {len(runs)} runs, {len(runs) - len(left)} have a result")
    output = Path(study.output).resolve()
    # A policy that a run goes on from may be gone although it has a result.
    gone = {run.start for run in left if not policy_of_run(output, run.start).is_dir()}
    first = [run for run in runs if not run.start and (run in left or run.key in gone)]
    code = 0
    for some in (first, [run for run in left if run.start]):
        if some and code != EXIT_STOPPED:
            code = _make_side_by_side(study, runs, some) or code
    return code


def policy_of_run(output: Path, key: str) -> Path:
    """Where the run with this key leaves its policy."""
    return output / "runs" / key / "aligned"


def _make_side_by_side(
    study: StudyConfig, runs: Sequence[PlannedRun], left: Sequence[PlannedRun]
) -> int:
    """Make the runs `left`, none of which goes on from another of them."""
    file = Path(study.results).resolve()
    results = read_results(file, resolve_settings)
    code = 0
    with ray_cluster():
        parallel = _parallel(left)
        waiting = _tasks(study, left, parallel)
        # A task reserves nothing itself: the groups of its runs do.
        remote = ray.remote(_carry_out).options(num_cpus=0, max_retries=0)
        under_way: dict[ray.ObjectRef[Any], Task] = {}
        seen = sum(run.key in results for run in runs)
        while waiting or under_way:
            while waiting and len(under_way) < parallel:
                # A seed that has a result has its models, unless the stages were removed since.
                begun = {task.seed for task in under_way.values()}
                preparing = begun - {run.seed for run in runs if run.key in results}
                task = waiting.pop(next_task([task.seed for task in waiting], preparing))
                under_way[remote.remote(task)] = task
            # Only to look after the results: a run may take hours.
            done, _ = ray.wait(list(under_way), num_returns=1, timeout=LOOK_EVERY_SECONDS)
            results = read_results(file, resolve_settings)
            finished = sum(run.key in results for run in runs)
            if finished > seen:
                seen = finished
                left_over = time_left(runs, results, parallel=parallel)
                say(f"[{finished}/{len(runs)}] {left_over}")
            for reference in done:
                task = under_way.pop(reference)
                failed, rest = _outcome(reference, task, results)
                code = code or next((code for _, code in failed.values()), 0)
                waiting += rest
    return code


def _outcome(
    reference: ray.ObjectRef[Any], task: Task, results: Mapping[str, RunResult]
) -> tuple[dict[str, tuple[str, int]], list[Task]]:
    """Say which runs of an ended task failed and why, with their exit codes; and what to do yet."""
    rest: list[Task] = []
    failures: dict[str, tuple[str, int]]
    try:
        failures = ray.get(reference, timeout=LOOK_EVERY_SECONDS)
    except ray.exceptions.RayError as error:
        # Its process is gone (memory is the usual cause), and with it the run that it was at.
        left = tuple(run for run in task.runs if run.key not in results)
        failures = {run.key: (str(error).strip().splitlines()[-1], 1) for run in left[:1]}
        rest = [replace(task, runs=left[1:])] if left[1:] else []
    arms = {run.key: f"{'/'.join(run.arms)} seed {run.seed}" for run in task.runs}
    for key, (message, _) in failures.items():
        say(f"failed: {arms[key]} ({key}): {message}")
    return failures, rest


def _tasks(study: StudyConfig, runs: Sequence[PlannedRun], parallel: int) -> list[Task]:
    output, results = (str(Path(folder).resolve()) for folder in (study.output, study.results))
    stages, code = str(stages_of_study(study)), commit()
    return [
        Task(runs=dealt, output=output, stages=stages, results=results, commit=code)
        for dealt in deal_tasks(runs, parallel=parallel)
    ]


def _parallel(runs: Sequence[PlannedRun]) -> int:
    """How many of the most demanding runs the cluster holds side by side."""
    total = ray.cluster_resources()
    most = math.inf
    for run in runs:
        demand = _demand(_settings_of(run))
        for resource, amount in demand.items():
            # Sums of fractions: three times 0.2 and a bit is not more than 0.6.
            most = min(most, math.floor(total.get(resource, 0.0) / amount + 1e-6))
    return max(1, min(len(runs), int(most) if math.isfinite(most) else 1))


def _settings_of(run: PlannedRun, output: Path | None = None) -> TrainConfig | FitConfig:
    """Args: output: folder of the study; None for what does not hang on where the run is."""
    changes: dict[str, Any] = {}
    if output is not None:
        changes["output"] = str(output / "runs" / run.key)
        if run.start:
            policy = str(policy_of_run(output, run.start))
            changes["sandbox"] = {**run.config["sandbox"], "policy": policy}
    return parse_settings(RUN_KINDS[run.kind], {**run.config, **changes})


def _demand(config: TrainConfig | FitConfig) -> dict[str, float]:
    demands = [Demand.of(name, getattr(config, name)) for name in GROUPS if hasattr(config, name)]
    total = total_of(demands)
    if config.data.is_built_in:
        # A place in which a run fits, but not what trains its base, would wait for others to end.
        total["CPU"] = max(total.get("CPU", 0.0), TrainingGroup().cpus)
    return total


def _carry_out(task: Task) -> dict[str, tuple[str, int]]:
    """Make the runs of a task, in a process of its own.

    Returns: message and exit code of every run that failed, by its key.
    """
    failures: dict[str, tuple[str, int]] = {}
    stages = Path(task.stages)
    stop = StopRequest()
    stop.install()
    prepared: dict[str, Inputs | FitInputs] = {}
    # All at once and first: a run that holds a generator must not wait for what trains a scorer.
    for run in task.runs:
        with _noting(run, failures):
            prepared[run.key] = _prepare(_settings_of(run, Path(task.output)), stages)
    bench: Workbench | None = None
    try:
        for run in task.runs:
            if run.key not in prepared:
                continue
            if stop():
                failures[run.key] = ("stopped before it began", EXIT_STOPPED)
                continue
            config, inputs = _settings_of(run, Path(task.output)), prepared[run.key]
            folder = Path(config.output)
            with _noting(run, failures):
                _link_stages(folder, stages)
                bench = _bench_for(config, inputs, bench)
                # The stages are no part of it; what the runs of a task share is part of the first.
                start = time.perf_counter()
                if _make(config, inputs, stages, bench, stop) == EXIT_STOPPED:
                    failures[run.key] = ("stopped and saved", EXIT_STOPPED)
                    continue
                seconds = time.perf_counter() - start
                result = _result_of(run, folder, seconds, code=task.commit)
                write_result(Path(task.results), result)
            if run.key in failures and bench is not None:
                bench.close()
    finally:
        if bench is not None:
            bench.close()
    return failures


@contextmanager
def _noting(run: PlannedRun, failures: dict[str, tuple[str, int]]) -> Iterator[None]:
    """Note what goes wrong, whatever it is: the other runs of a task do not depend on it."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()  # into Ray's log
        code = error.exit_code if isinstance(error, EquilibrateError) else 1
        failures[run.key] = (f"{type(error).__name__}: {error}", code)


def _prepare(config: TrainConfig | FitConfig, stages: Path) -> Inputs | FitInputs:
    check_inputs(config)
    if isinstance(config, FitConfig):
        return prepare_fit_inputs(config, stages, say)
    return prepare_inputs(config, stages, say)


def _link_stages(run: Path, stages: Path) -> None:
    """What looks at the run later (`evaluate`) finds its models where every run has them."""
    link = stages_of(run)
    if not link.exists():
        run.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(stages, run), target_is_directory=True)


def _bench_for(
    config: TrainConfig | FitConfig, inputs: Models, last: Workbench | None
) -> Workbench:
    """That of the run before, if this one would start the same processes."""
    if last is not None:
        if last.suits(config, inputs):
            return last
        last.close()
    return Workbench(config, inputs)


def _make(
    config: TrainConfig | FitConfig,
    inputs: Inputs | FitInputs,
    stages: Path,
    bench: Workbench,
    stop: Callable[[], bool],
) -> int:
    """Carry out one run; its exit code."""
    with own_run_folder(config) as run:
        if run is None:
            return 0
        if isinstance(config, TrainConfig) and isinstance(inputs, Inputs):
            return train_with(config, run, inputs, bench.groups_for(config), stop)
        assert isinstance(config, FitConfig)
        assert isinstance(inputs, FitInputs)
        fit_with(config, run, inputs, bench, stages)
    return 0


def _require_measured(runs: Sequence[PlannedRun]) -> None:
    """Raises: ConfigError for an arm that leaves nothing to compare."""
    for run in runs:
        config = _settings_of(run)
        is_policy = isinstance(config, TrainConfig) or config.trains == "policy"
        if not is_policy or not (config.data.is_built_in or config.data.evaluation):
            what = "trains a scorer" if not is_policy else "has no data.evaluation"
            raise ConfigError(
                f"arms.{run.arms[0]} {what}: a study compares policies by their answers to "
                "held-out prompts; take the arm out, or give data.evaluation"
            )


def _result_of(run: PlannedRun, folder: Path, seconds: float, *, code: str | None) -> RunResult:
    results = json.loads((folder / RESULTS_FILE).read_text())
    beside = {name: results[name] for name in BESIDE if results[name] is not None}
    return RunResult(
        key=run.key,
        kind=run.kind,
        seed=run.seed,
        config=run.config,
        inputs=run.inputs,
        base=EvaluationTable.from_json(results["base"]),
        aligned=EvaluationTable.from_json(results["aligned"]),
        training={
            name: math.nan if value is None else value
            for name, value in (results["training"] | beside).items()
        },
        seconds=seconds,
        versions=results["versions"],
        judge=results["judge"],
        commit=code,
        machine=machine(),
        settings_format=SETTINGS_FORMAT,
    )
