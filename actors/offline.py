"""The training that precedes PPO, each as one Ray Train run: SFT, reward model, cost model.

A lost worker is replaced and training goes on from the last reported checkpoint, a quarter of the
run back at most. On CPU in float32 the same arguments give the same bytes, interrupted or not.
Every function may be called from a plain thread or Ray task, several at a time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
from ray.train.torch import TorchTrainer

from actors.offline_worker import Job, train_worker
from equilibrate.data.tables import SFT_COLUMNS, load_columns, load_pair_labels
from equilibrate.errors import ConfigError, EquilibrateError, ResourceError, WorkerLostError
from equilibrate.run.capacity import Demand, check_capacity
from equilibrate.run.stages import short_hash
from equilibrate.types import ScorerKind

_STORAGE = ".train"
_TRAIN_SETTINGS = {
    # Ray Train looks every 2 s by default: as long as a short training would wait for its end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # One process less; a preempted worker is a lost worker, and those are replaced anyway.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainWorkers:
    """Who does the work. More than one worker: data parallel, each with its part of a batch."""

    num_workers: int = 1
    cpus: float = 1.0
    """Reserved per worker."""
    gpus: float = 0.0
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast; parameters stay float32."""
    max_restarts: int = 3
    """Lost workers that are replaced before the run stops."""


def train_sft(
    model: Path,
    dataset: Path,
    out: Path,
    *,
    steps: int = 1500,
    batch_size: int = 32,
    lr: float = 2e-3,
    max_length: int = 512,
    seed: int = 0,
    workers: TrainWorkers | None = None,
) -> dict[str, float]:
    """Supervised training on responses: AdamW (0.9, 0.98), 50 warm-up steps, cosine to 0.

    Args:
        model: Hugging Face folder of a causal model with its tokenizer.
        dataset: folder of a saved data set with the columns prompt, response.
        out: gets a plain Hugging Face folder.
        batch_size: rows of the global batch.
        max_length: longer rows are cut, in tokens.
    Returns: num_steps and final_loss, nats per token over the last 50 steps.
    Raises: DataError naming folder and column; NumericsError where the gradient is not finite;
        ResourceError if the cluster is too small; WorkerLostError after max_restarts.
    """
    load_columns(dataset, SFT_COLUMNS)
    workers = workers or TrainWorkers()
    job = _make_job(
        "sft", model, dataset, out, workers, steps=steps, batch_size=batch_size, lr=lr,
        max_length=max_length, seed=seed,
    )  # fmt: skip
    return _fit(job, workers)


def train_reward(
    base: Path,
    preferences: Path,
    out: Path,
    *,
    epochs: int = 1,
    batch_size: int = 32,
    lr: float = 1e-3,
    regularization: float = 0.01,
    token_wise: bool = True,
    max_length: int = 512,
    seed: int = 0,
    workers: TrainWorkers | None = None,
) -> dict[str, float]:
    """Reward model from PKU-SafeRLHF columns (prompt, response_0, response_1, better_response_id).

    Args:
        base: Hugging Face folder of a causal model; its weights are the start.
        out: gets an `AutoModelForSequenceClassification` folder with `equilibrate_score.json`.
        batch_size: pairs of the global batch.
        regularization: mu of the Safe-RLHF loss.
        token_wise: compare at every token from the first difference on, not only at the end.
    Returns: num_steps, final_loss and the calibration on 5 % held-out pairs: num_pairs,
        ranking_accuracy, score_std, better_mean, worse_mean.
    Raises: as `train_sft`.
    """
    load_pair_labels("reward", preferences)
    workers = workers or TrainWorkers()
    job = _make_job(
        "reward", base, preferences, out, workers, epochs=epochs, batch_size=batch_size, lr=lr,
        regularization=regularization, token_wise=token_wise, max_length=max_length, seed=seed,
    )  # fmt: skip
    return _fit(job, workers)


def train_cost(
    base: Path,
    preferences: Path,
    out: Path,
    *,
    epochs: int = 1,
    batch_size: int = 32,
    lr: float = 5e-4,
    regularization: float = 0.01,
    token_wise: bool = True,
    max_length: int = 512,
    seed: int = 0,
    workers: TrainWorkers | None = None,
) -> dict[str, float]:
    """Cost model from PKU-SafeRLHF columns: safer_response_id and is_response_{0,1}_safe.

    Same arguments as `train_reward`.
    Returns: num_steps, final_loss and the calibration on 5 % held-out pairs: num_pairs,
        ranking_accuracy, score_std, sign_accuracy, unsafe_mean, safe_mean. A mean cost between the
        two means reads as a share of unsafe responses: a budget is placed by it.
    Raises: as `train_sft`.
    """
    load_pair_labels("cost", preferences)
    workers = workers or TrainWorkers()
    job = _make_job(
        "cost", base, preferences, out, workers, epochs=epochs, batch_size=batch_size, lr=lr,
        regularization=regularization, token_wise=token_wise, max_length=max_length, seed=seed,
    )  # fmt: skip
    return _fit(job, workers)


_LEFT_OUT = (
    # Frees the reservation of a dead controller: Ray does so as well when the driver ends, and its
    # process floods the log where the dashboard is off.
    "PlacementGroupCleanerCallback",
    # Shows every worker all GPUs of its machine: ours see their own alone, as those of PPO do.
    "AcceleratorSetupCallback",
    # A process that deals out Ray data sets, of which there are none: 4 s of a core each time.
    "DatasetsCallback",
)
MAX_UNSTARTED = 10
"""Times that Ray Train waits a minute for its workers to start: by default it waits for ever."""


class _LeanTrainer(TorchTrainer):
    """Without some of Ray Train's own callbacks."""

    def _create_default_callbacks(self) -> list[Any]:
        return [
            callback
            for callback in super()._create_default_callbacks()
            if type(callback).__name__ not in _LEFT_OUT
        ]


def _make_job(
    kind: Literal["sft"] | ScorerKind,
    model: Path,
    dataset: Path,
    out: Path,
    workers: TrainWorkers,
    *,
    batch_size: int,
    lr: float,
    max_length: int,
    seed: int,
    steps: int = 0,
    epochs: int = 0,
    regularization: float = 0.0,
    token_wise: bool = False,
) -> Job:
    if batch_size % workers.num_workers:
        lower = max(1, batch_size // workers.num_workers) * workers.num_workers
        raise ConfigError(
            f"batch_size ({batch_size}) must be a multiple of num_workers "
            f"({workers.num_workers}); try {lower}"
        )
    return Job(
        kind=kind,
        model=str(model.resolve()),
        dataset=str(dataset.resolve()),
        out=str(out.resolve()),
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        token_wise=token_wise,
        regularization=regularization,
        max_length=max_length,
        seed=seed,
        num_workers=workers.num_workers,
        threads=workers.threads,
        device=workers.device,
        dtype=workers.dtype,
    )


def _fit(job: Job, workers: TrainWorkers) -> dict[str, float]:
    tree = asdict(job)
    return fit_on_cluster(
        train_worker, tree, workers, name=job.kind, out=Path(job.out), key=short_hash(tree)
    )


def fit_on_cluster(
    worker: Callable[[dict[str, Any]], Any],
    job: dict[str, Any],
    workers: TrainWorkers,
    *,
    name: str,
    out: Path,
    key: str,
) -> dict[str, float]:
    """Run `worker(job)` in every rank of one Ray Train run; lost ones are replaced.

    Args:
        worker: of a module; returns its figures, or the error that another attempt would meet too.
        job: plain values: a class of ours would make the controller process import all that it
            needs.
        out: a folder; checkpoints are kept in it until the end.
        key: of all that the result depends on: a call with another one must not continue from
            this one's checkpoints.
    Raises: the error a worker returns; ResourceError if the cluster is too small; WorkerLostError
        after `max_restarts`. ResourceError also if others keep the cluster full.
    """
    demand = Demand(
        name="training", num_workers=workers.num_workers, cpus=workers.cpus, gpus=workers.gpus
    )
    check_capacity([demand], [node["Resources"] for node in ray.nodes() if node["Alive"]])
    for variable, value in _TRAIN_SETTINGS.items():
        os.environ.setdefault(variable, value)
    storage = out / _STORAGE
    storage.mkdir(parents=True, exist_ok=True)
    trainer = _trainer(worker, job, workers, name=f"{name}-{key}", storage=storage)
    try:
        outcome = trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        raise WorkerLostError(
            f"{name} training lost its workers more than {workers.max_restarts} times; the "
            f"last failure: {error}"
        ) from error
    except ray.train.ControllerError as error:
        raise ResourceError(
            f"{name} training could not start {workers.num_workers} workers with {workers.cpus:g} "
            f"CPU and {workers.gpus:g} GPU each: {error}; wait for other jobs or stop them"
        ) from error
    if isinstance(outcome, EquilibrateError):
        raise outcome
    shutil.rmtree(storage)
    return dict(outcome)


def _trainer(
    worker: Callable[[dict[str, Any]], Any],
    job: dict[str, Any],
    workers: TrainWorkers,
    *,
    name: str,
    storage: Path,
) -> TorchTrainer:
    return _LeanTrainer(
        worker,
        train_loop_config=job,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus}
            | ({"GPU": workers.gpus} if workers.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(
                max_failures=workers.max_restarts, controller_failure_limit=MAX_UNSTARTED
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
