"""Offline training as one Ray Train run: any objective of `fit`, a policy or a scorer.

Ray Train starts the ranks and replaces lost ones; each rank steps with DeepSpeed, and the state of
the training is kept in `checkpoints` beside what it makes. A lost rank, a lost command or machine
costs a quarter of the run at most, and ten minutes of a long one. On CPU in float32 the same
arguments give the same bytes, interrupted or not. May be called from a plain thread or Ray task,
several at a time.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
import transformers
from ray.train.torch import TorchTrainer

from actors.engine import DeepSpeedModel, export_model, join_group
from actors.handles import machine_name
from actors.placement import live_machines
from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig, ScorerObjectiveConfig
from equilibrate.errors import EquilibrateError, ResourceError, WorkerLostError
from equilibrate.models.device import Accelerator
from equilibrate.models.loading import load_policy, load_scorer, load_twin_scorer
from equilibrate.models.new_scorer import new_scorer, new_twin_scorer
from equilibrate.models.sidecar import ScorerSidecar, is_scorer, read_sidecar, write_sidecar
from equilibrate.models.trainable import prepare_training
from equilibrate.offline.scorer_loss import named_by_head
from equilibrate.offline.table import load_answers
from equilibrate.offline.training import OfflineTraining, Progress, batch_loss
from equilibrate.run.agreement import Agreement
from equilibrate.run.capacity import Demand, check_capacity
from equilibrate.run.checkpoint import CheckpointStore
from equilibrate.run.folder import say
from equilibrate.run.progress import format_step
from equilibrate.run.sinks import JsonlFile, read_rows
from equilibrate.run.versions import installed_versions
from equilibrate.text.renderer import load_tokenizer

CHECKPOINTS = "checkpoints"
STORAGE = ".train"
"""Ray Train's own notes on a run."""
PROGRESS_FILE = "progress.json"
STEPS_FILE = "steps.jsonl"
"""Figures of each optimiser step."""
SECONDS_BETWEEN_LINES = 60.0
SECONDS_TO_LET_GO = 30.0
"""How long a rank waits for the one that it replaces to be gone."""
MAX_UNSTARTED = 10
"""Times that Ray Train waits a minute for its workers to start: by default it waits for ever."""
_TRAIN_SETTINGS = {
    # Ray Train looks every 2 s by default: as long as a short training would wait for its end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # One process less; a preempted worker is a lost worker, and those are replaced anyway.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_LEFT_OUT = (
    # Frees the reservation of a dead controller: Ray does so as well when the driver ends, and its
    # process floods the log where the dashboard is off.
    "PlacementGroupCleanerCallback",
    # Shows every worker all GPUs of its machine: ours see their own alone, as those of PPO do.
    "AcceleratorSetupCallback",
    # A process that deals out Ray data sets, of which there are none: 4 s of a core each time.
    "DatasetsCallback",
)


def train_on_cluster(
    config: FitConfig, start: Path, answers: Path, out: Path, steps: Path | None = None
) -> dict[str, float]:
    """Train on a saved `AnswerTable`; goes on from the checkpoints in `out` if there are any.

    Args:
        start: model folder that the training starts from.
        answers: folder of the table.
        out: gets a plain Hugging Face folder with its tokenizer; of a scorer with its sidecar.
        steps: file that is to keep the figures of each step.
    Returns: num_steps, final_loss and what `OfflineTraining.measure` found.
    Raises: DataError, NumericsError or what else a rank finds wrong; ResourceError if the cluster
        is too small, or if others keep it full; WorkerLostError after `max_restarts`.
    """
    workers, name = config.trainer, config.objective.type
    check_capacity([Demand.of("trainer", workers)], live_machines())
    for variable, value in _TRAIN_SETTINGS.items():
        os.environ.setdefault(variable, value)
    steps = steps or out / STORAGE / STEPS_FILE
    job = {
        "settings": json.loads(config.model_dump_json()),
        "start": str(start.resolve()),
        "answers": str(answers.resolve()),
        "out": str(out.resolve()),
        "steps": str(steps.resolve()),
        "agreement": asdict(Agreement.write(out / STORAGE)),
    }
    try:
        with _narrated(steps, name):
            outcome = _trainer(config, job, out / STORAGE).fit().return_value
    except ray.train.WorkerGroupError as error:
        raise WorkerLostError(
            f"{name} training lost its workers more than {config.max_restarts} times; the "
            f"last failure: {error}"
        ) from error
    except ray.train.ControllerError as error:
        raise ResourceError(
            f"{name} training could not start {workers.num_workers} workers with {workers.cpus:g} "
            f"CPU and {workers.gpus:g} GPU each: {error}; wait for other jobs or stop them"
        ) from error
    if isinstance(outcome, EquilibrateError):
        raise outcome
    for folder in (STORAGE, CHECKPOINTS):
        _remove(out / folder)
    return dict(outcome)


@contextmanager
def _narrated(steps: Path, name: str) -> Iterator[None]:
    """A line a minute about a training that other processes do."""
    is_over = threading.Event()

    def follow() -> None:
        told = -1
        while not is_over.wait(SECONDS_BETWEEN_LINES):
            rows = read_rows(steps)
            if rows and rows[-1]["iteration"] != told:
                told = rows[-1]["iteration"]
                say(format_step(name, rows))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _remove(folder: Path) -> None:
    """Renamed first: half of its checkpoints would count as damaged ones."""
    doomed = folder.with_name(f".removed-{folder.name.lstrip('.')}")
    shutil.rmtree(doomed, ignore_errors=True)  # of a command that ended just here
    folder.rename(doomed)
    shutil.rmtree(doomed)


class _LeanTrainer(TorchTrainer):
    """Without some of Ray Train's own callbacks."""

    def _create_default_callbacks(self) -> list[Any]:
        return [
            callback
            for callback in super()._create_default_callbacks()
            if type(callback).__name__ not in _LEFT_OUT
        ]


def _trainer(config: FitConfig, job: dict[str, Any], storage: Path) -> TorchTrainer:
    workers = config.trainer
    reserved = Demand.of("trainer", workers).amounts
    return _LeanTrainer(
        # Plain values: a class of ours would make the controller process import all that it needs.
        train_worker,
        train_loop_config=job,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": 0, **reserved},
        ),
        run_config=ray.train.RunConfig(
            name=config.objective.type,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(
                max_failures=config.max_restarts, controller_failure_limit=MAX_UNSTARTED
            ),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


def train_worker(job: dict[str, Any]) -> dict[str, float] | EquilibrateError:
    """What Ray Train runs in every rank.

    An error that another attempt would meet again is returned: a raised one would use up the
    restarts that are meant for lost workers.
    """
    try:
        config = parse_settings(FitConfig, job["settings"])
        agreement = Agreement(**job["agreement"])
        folders = (Path(job[name]) for name in ("start", "answers", "out", "steps"))
        return _train(config, agreement, *folders)
    except EquilibrateError as error:
        return error


def _train(
    config: FitConfig, agreement: Agreement, start: Path, answers: Path, out: Path, steps: Path
) -> dict[str, float]:
    _quieten()
    # For DeepSpeed: a worker sees its own GPU alone.
    os.environ["LOCAL_RANK"] = "0"
    accelerator = Accelerator(config.device, config.dtype)
    accelerator.prepare(threads=config.cpu_threads)
    # Adam's second moments of rare rows fall into denormals, which a CPU multiplies slowly.
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    join_group(accelerator)
    _require_on_every_rank(agreement)
    table = load_answers(answers)
    module = _module(config, start, accelerator)
    prepare_training(module, config.trainer, accelerator, seed=config.seed)
    model = DeepSpeedModel(
        module,
        config.lr,
        zero_stage=config.trainer.zero_stage,
        minibatch_size=config.batch_size,
    )
    loss = batch_loss(table, config, accelerator.torch_device)
    training = OfflineTraining(config, table, loss, model)
    with ExitStack() as held:
        checkpoints = held.enter_context(_RankCheckpoints(out / CHECKPOINTS, model))
        progress = checkpoints.restore()
        tell = held.enter_context(_step_log(steps, progress.step))
        figures = training.run(progress, checkpoints.save, tell)
    if config.trains == "policy":
        export_model(model, out, tokenizer=start, adapter=config.trainer.adapter)
        return figures | training.summarise()
    found = training.calibrate()
    export_model(model, out, tokenizer=start, adapter=config.trainer.adapter)
    if dist.get_rank() == 0:
        heads = [
            read_sidecar(start, kind=kind) if is_scorer(start) else ScorerSidecar(kind=kind)
            for kind in found
        ]
        write_sidecar(out, *(replace(head, calibration=found[head.kind]) for head in heads))
    return figures | named_by_head(found)


def _require_on_every_rank(agreement: Agreement) -> None:
    """Raises: on every rank, what the first finds wrong: one that returned alone would leave the
    others waiting for it."""
    failure: EquilibrateError | None = None
    try:
        agreement.require(machine_name())
    except EquilibrateError as error:
        failure = error
    failures: list[EquilibrateError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for found in failures:
        if found is not None:
            raise found


@contextmanager
def _step_log(file: Path, start: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Takes the figures of each step; rank 0 writes them, behind those of steps before `start`."""
    if dist.get_rank() != 0:
        yield lambda figures: None
        return
    with closing(JsonlFile(file)) as log:
        log.keep_before(start)
        yield log.append


def _module(config: FitConfig, start: Path, accelerator: Accelerator) -> torch.nn.Module:
    if config.trains == "policy":
        return load_policy(start, accelerator)
    assert isinstance(config.objective, ScorerObjectiveConfig)
    kinds = config.objective.kinds
    if is_scorer(start):
        if len(kinds) > 1:
            return load_twin_scorer(start, kinds, accelerator)
        return load_scorer(start, kinds[0], accelerator)
    drawn = {"seed": config.seed, "pad_token_id": load_tokenizer(start).pad_token_id}
    if len(kinds) > 1:
        return new_twin_scorer(start, kinds, accelerator, **drawn)
    return new_scorer(start, kinds[0], accelerator, **drawn)


class _RankCheckpoints:
    """Model and progress in sealed folders; rank 0 seals what all ranks write.

    Raises: on every rank, what rank 0 alone finds wrong: one that returned would leave the others
        waiting for it.
    """

    def __init__(self, folder: Path, model: DeepSpeedModel) -> None:
        self._folder = folder
        self._model = model
        self._store: CheckpointStore | None = None
        self._is_writing = False

    def __enter__(self) -> _RankCheckpoints:
        failure = None
        if dist.get_rank() == 0:
            try:
                self._store = _open_store(self._folder)
            except EquilibrateError as error:
                failure = error
        _from_rank_0(failure)
        return self

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._store.close()

    def restore(self) -> Progress:
        """Of the newest checkpoint, loaded into the model; nothing done where there is none."""
        newest: str | EquilibrateError | None = None
        if self._store is not None:
            try:
                found = self._store.latest()
                newest = str(found.folder) if found else None
            except EquilibrateError as error:
                newest = error
        folder = _from_rank_0(newest)
        if folder is None:
            return Progress()
        self._model.load(Path(folder) / "model")
        saved = json.loads((Path(folder) / PROGRESS_FILE).read_text())
        return Progress(step=saved["step"], losses=tuple(saved["losses"]))

    def save(self, progress: Progress) -> None:
        if self._store is None:
            self._write_model(None)
            _from_rank_0(None)
            return

        def write(folder: Path) -> None:
            self._write_model(folder)
            content = {"step": progress.step, "losses": progress.losses}
            (folder / PROGRESS_FILE).write_text(json.dumps(content))

        failure = None
        try:
            self._store.save(progress.step, write)
        except EquilibrateError as error:
            if self._is_writing and dist.get_world_size() > 1:
                # The others wait inside DeepSpeed, where no word reaches them: Ray Train ends them
                # when this is raised.
                raise RuntimeError(f"rank 0 could not save: {error}") from error
            failure = error
        _from_rank_0(failure)

    def _write_model(self, folder: Path | None) -> None:
        """Args: folder: that of rank 0."""
        shared = Path(_from_rank_0(str(folder)))
        self._is_writing = True
        self._model.save(shared / "model")
        dist.barrier()
        self._is_writing = False


def _open_store(folder: Path) -> CheckpointStore:
    deadline = time.monotonic() + SECONDS_TO_LET_GO
    while True:
        try:
            return CheckpointStore(folder, keep=1, versions=installed_versions())
        except ResourceError:
            # The rank before this one may still be on its way out.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _from_rank_0(value: Any) -> Any:
    """The value that rank 0 gives; an error of ours is raised on every rank."""
    values = [value]
    dist.broadcast_object_list(values)
    if isinstance(values[0], EquilibrateError):
        raise values[0]
    return values[0]


def _quieten() -> None:
    """Ray forwards every line of a worker to the driver; only warnings are worth that."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # The root: Ray Train names the logger of its reports after a file, not after a module.
    logging.getLogger().setLevel(logging.WARNING)
