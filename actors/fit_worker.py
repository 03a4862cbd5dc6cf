"""One rank of offline training: passes, optimiser steps, checkpoints, and the final folder."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist

from actors.engine import DeepSpeedModel, export_model, join_group
from actors.offline_worker import CHECKPOINTS_PER_RUN, learning_rate, quieten
from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.errors import DataError, EquilibrateError, NumericsError
from equilibrate.models.device import Accelerator
from equilibrate.models.loading import load_policy
from equilibrate.offline.batches import plan_batches
from equilibrate.offline.policy_loss import PolicyLoss, summarise_masks
from equilibrate.offline.table import AnswerTable, Rows, load_answers
from equilibrate.ppo.batches import dealt_passes

STEP_FILE = "step.txt"
LAST_STEPS = 50
"""Steps at the end whose mean loss is reported."""


def fit_worker(job: dict[str, Any]) -> dict[str, float] | EquilibrateError:
    """What Ray Train runs in every worker.

    Args: job: model, answers and out (folders), and settings, the tree of a `FitConfig`.
    An error that another attempt would meet again is returned: a raised one would use up the
    restarts that are meant for lost workers.
    """
    try:
        settings = parse_settings(FitConfig, job["settings"])
        return _fit(settings, Path(job["model"]), Path(job["answers"]), Path(job["out"]))
    except EquilibrateError as error:
        return error


def _fit(config: FitConfig, model: Path, answers: Path, out: Path) -> dict[str, float]:
    quieten()
    # For DeepSpeed: a worker sees its own GPU alone.
    os.environ["LOCAL_RANK"] = "0"
    accelerator = Accelerator(config.device, config.dtype)
    accelerator.prepare(threads=config.cpu_threads)
    # Adam's second moments of rare rows fall into denormals, which a CPU multiplies slowly.
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    join_group(accelerator)
    table = load_answers(answers)
    policy = DeepSpeedModel(
        load_policy(model, accelerator),
        config.lr,
        zero_stage=config.trainer.zero_stage,
        minibatch_size=config.batch_size,
    )
    objective = PolicyLoss(table, config, accelerator.torch_device)
    run = FitRun(config, table, objective, policy)
    final_loss = run.train(_restore(policy))
    export_model(policy, out, tokenizer=model)
    return {
        "num_steps": float(len(run.batches)),
        "final_loss": final_loss,
        **summarise_masks(objective, table, config.batch_size),
    }


class FitRun:
    """The steps of one training, on one rank."""

    def __init__(
        self, config: FitConfig, table: AnswerTable, objective: PolicyLoss, policy: DeepSpeedModel
    ) -> None:
        self._config = config
        self._table = table
        self._objective = objective
        self._policy = policy
        # Equally many for every rank, also where the data do not fill one batch.
        world_size = dist.get_world_size()
        batch_size = min(config.batch_size, len(table) // world_size * world_size)
        if not batch_size:
            raise DataError(
                f"{len(table)} examples are too few for {world_size} workers; lower "
                "trainer.num_workers"
            )
        self.batches = plan_batches(
            table.example_lengths,
            batch_size=batch_size,
            num_batches=max(1, config.epochs * len(table) // batch_size),
            seed=config.seed,
        )

    def train(self, start: int) -> float:
        """From step `start` on; returns the mean loss of the last steps."""
        config, num_steps = self._config, len(self.batches)
        save_every = -(-num_steps // CHECKPOINTS_PER_RUN)
        losses: list[float] = []
        for step in range(start, num_steps):
            self._policy.set_learning_rate(learning_rate(step, steps=num_steps, peak=config.lr))
            loss = self._learn(self.batches[step])
            norm = self._policy.step()
            # The norm is the same on all ranks, so they stop together or not at all.
            if not math.isfinite(norm):
                raise NumericsError(
                    f"{config.objective.type} training: step {step}, gradient norm must be finite; "
                    f"try a learning rate below lr ({config.lr:g})"
                )
            losses = [*losses[1 - LAST_STEPS :], loss]
            if (step + 1) % save_every == 0 and step + 1 < num_steps:
                _checkpoint(self._policy, step + 1, loss)
        return sum(losses) / max(1, len(losses))

    def _learn(self, examples: Rows) -> float:
        """Gradients of one batch; its loss, summed over ranks."""
        masks = self._objective.plan(examples)
        lengths = self._table.example_lengths
        passes = dealt_passes(
            np.arange(len(examples)),
            lengths[examples],
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            max_tokens=self._config.trainer.max_tokens_per_batch,
        )
        total = torch.zeros((), dtype=torch.float64, device=self._objective.device)
        for number, places in enumerate(passes):
            loss = self._objective.loss(self._policy, masks, np.sort(places))
            self._policy.backward(loss, is_last=number == len(passes) - 1)
            total += loss.detach()
        if dist.get_world_size() > 1:
            dist.all_reduce(total)
        return float(total)


def _checkpoint(policy: DeepSpeedModel, step: int, loss: float) -> None:
    """Report to Ray Train, which joins the folders of all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder) / "policy")
        # The same on every rank, so it does not matter whose copy stays.
        (Path(folder) / STEP_FILE).write_text(str(step))
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step, "loss": loss}, checkpoint=checkpoint)


def _restore(policy: DeepSpeedModel) -> int:
    """Load the last reported checkpoint, if there is one, and return the steps it had done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        policy.load(Path(folder) / "policy")
        return int((Path(folder) / STEP_FILE).read_text())
