"""The loop of one Ray Train worker: batches, optimiser steps, checkpoints, and the final folder."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray.train
import ray.train.torch
import torch
import transformers
from torch import nn

from equilibrate.errors import EquilibrateError, NumericsError
from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from equilibrate.offline.batches import plan_batches
from equilibrate.offline.trainings import Objective, ScorerObjective, SftObjective, load_tokenizer

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 50
MAX_GRAD_NORM = 1.0
CHECKPOINTS_PER_RUN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that one training depends on; its hash names the folder of its checkpoints."""

    kind: Literal["sft", "reward", "cost"]
    model: str
    dataset: str
    out: str
    steps: int
    """Optimiser steps; 0 means `epochs` passes over the training rows."""
    epochs: int
    batch_size: int
    lr: float
    token_wise: bool
    regularization: float
    max_length: int
    seed: int
    num_workers: int
    threads: int
    device: str
    dtype: str


def train_worker(config: dict[str, Any]) -> dict[str, float] | EquilibrateError:
    """What Ray Train runs in every worker.

    An error that another attempt would meet again is returned: a raised one would use up the
    restarts that are meant for lost workers.
    """
    try:
        return _train(Job(**config))
    except EquilibrateError as error:
        return error


def learning_rate(step: int, *, steps: int, peak: float) -> float:
    """Linear warm-up over 50 steps, or a quarter of a shorter run, then a cosine to 0."""
    warmup = min(WARMUP_STEPS, steps // 4)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _train(job: Job) -> dict[str, float]:
    quieten()
    torch.set_num_threads(job.threads)
    # Adam's second moments of rare rows fall into denormals, which a CPU multiplies slowly.
    torch.set_flush_denormal(True)
    torch.manual_seed(job.seed)
    objective = _make_objective(job)
    steps = job.steps or max(1, job.epochs * len(objective.lengths) // job.batch_size)
    forward = _prepare(objective.module, job)
    optimizer = torch.optim.AdamW(
        forward.parameters(), lr=job.lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    start = _restore(objective.module, optimizer)
    final_loss = _run_steps(job, objective, forward, optimizer, start=start, steps=steps)
    if ray.train.get_context().get_world_rank() != 0:
        return {}
    calibration = _save_result(job, objective, forward)
    return {"num_steps": float(steps), "final_loss": final_loss, **calibration}


def quieten() -> None:
    """Ray forwards every line of a worker to the driver; only warnings are worth that."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # The root: Ray Train names the logger of its reports after a file, not after a module.
    logging.getLogger().setLevel(logging.WARNING)


def _run_steps(
    job: Job,
    objective: Objective,
    forward: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    start: int,
    steps: int,
) -> float:
    """Train from step `start` on; the mean loss of the last steps, this rank's share."""
    rank, world = ray.train.get_context().get_world_rank(), job.num_workers
    shard = slice(rank, None, world)
    batches = plan_batches(
        objective.lengths, batch_size=job.batch_size, num_batches=steps, seed=job.seed
    )
    parameters = list(forward.parameters())
    save_every = -(-steps // CHECKPOINTS_PER_RUN)
    recent: list[float] = []
    forward.train()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=steps, peak=job.lr)
        with _precision(job):
            # Ranks hold parts of one sum, and the wrapper averages gradients over ranks.
            loss = objective.loss(forward, batches[step], shard) * world
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        # The gradient is the same on all ranks, so they stop together or not at all.
        if not math.isfinite(norm.item()):
            raise NumericsError(
                f"{job.kind} training: step {step}, gradient norm ({norm.item()}) must be finite; "
                f"try a learning rate below lr ({job.lr:g})"
            )
        optimizer.step()
        optimizer.zero_grad()
        recent = [*recent[-49:], loss.item()]
        if (step + 1) % save_every == 0 and step + 1 < steps:
            _checkpoint(objective.module, optimizer, step + 1, rank, sum(recent) / len(recent))
    return sum(recent) / max(1, len(recent))


def _make_objective(job: Job) -> Objective:
    if job.kind == "sft":
        return SftObjective(Path(job.model), Path(job.dataset), max_length=job.max_length)
    return ScorerObjective(
        job.kind,
        Path(job.model),
        Path(job.dataset),
        token_wise=job.token_wise,
        regularization=job.regularization,
        max_length=job.max_length,
        seed=job.seed,
    )


def _prepare(module: nn.Module, job: Job) -> nn.Module:
    if job.num_workers > 1:
        return ray.train.torch.prepare_model(module)
    return module.to(job.device)


@contextmanager
def _precision(job: Job) -> Iterator[None]:
    with torch.autocast(job.device, torch.bfloat16, enabled=job.dtype == "bfloat16"):
        yield


def _checkpoint(
    module: nn.Module, optimizer: torch.optim.Optimizer, step: int, rank: int, loss: float
) -> None:
    """Report to Ray Train; rank 0 carries the state, which is the same on all ranks."""
    metrics = {"step": step, "loss": loss}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {"step": step, "module": module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, Path(folder) / "state.pt")
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _restore(module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the last reported checkpoint, if there is one, and return the steps it had done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", weights_only=True, map_location="cpu")
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save_result(job: Job, objective: Objective, forward: nn.Module) -> dict[str, float]:
    """Write model, tokenizer and, for a scorer, its sidecar; the held-out figures."""
    out = Path(job.out)
    # The wrapper would wait for the other ranks, which have left.
    inner = objective.module.eval()
    calibration = objective.calibrate(inner, batch_size=max(job.batch_size, 64))
    objective.model.save_pretrained(out)
    load_tokenizer(Path(job.model)).save_pretrained(out)
    if job.kind != "sft":
        write_sidecar(out, ScorerSidecar(kind=job.kind, calibration=calibration))
    return calibration
