"""The training loop of one rank: batches, optimiser steps, checkpoints, and what was learned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from equilibrate.config.fit import FitConfig
from equilibrate.errors import DataError, NumericsError
from equilibrate.models.trainable import Trainable
from equilibrate.offline.policy_loss import PolicyLoss, summarise_masks
from equilibrate.offline.scorer_loss import Calibrations, ScorerLoss
from equilibrate.offline.table import AnswerTable, Rows
from equilibrate.ppo.batches import passes_of_rank

WARMUP_STEPS = 50
CHECKPOINTS_PER_RUN = 4
CHECKPOINT_SECONDS = 600.0
"""Time after which a checkpoint is due in any case: a quarter of a long run is hours."""
SAVING_SHARE = 0.05
"""Of the time that such further checkpoints may take: those of large models take minutes."""
_BATCHES_PER_WINDOW = 64
LAST_STEPS = 50
"""Steps at the end whose mean loss is reported."""


class BatchLoss(Protocol):
    """The loss of a batch of examples, in parts that add up to the mean over the global batch."""

    device: torch.device

    def plan(self, examples: Rows) -> Any:
        """What the parts of a global batch have in common, for example counts."""

    def loss(self, model: Any, plan: Any, places: Rows) -> Tensor:
        """The part of the examples at `places` of the batch."""


def batch_loss(table: AnswerTable, config: FitConfig, device: torch.device) -> BatchLoss:
    """That of the objective: of a policy, or of a scorer."""
    kind = PolicyLoss if config.trains == "policy" else ScorerLoss
    return kind(table, config, device)


def plan_batches(lengths: Rows, *, batch_size: int, num_batches: int, seed: int) -> list[Rows]:
    """Row numbers of every batch: shuffled epochs end to end, similar lengths together.

    Rows are sorted by length only within windows of 64 batches, whose batches are then shuffled, so
    that training does not see a curriculum of lengths.
    """
    rng = np.random.default_rng(seed)
    wanted = batch_size * num_batches
    epochs = -(-wanted // len(lengths))
    stream = np.concatenate([rng.permutation(len(lengths)) for _ in range(epochs)])[:wanted]
    batches: list[Rows] = []
    for start in range(0, wanted, batch_size * _BATCHES_PER_WINDOW):
        window = stream[start : start + batch_size * _BATCHES_PER_WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        chunks = window.reshape(-1, batch_size)
        batches.extend(chunks[rng.permutation(len(chunks))])
    return batches


def learning_rate(step: int, *, steps: int, peak: float) -> float:
    """Linear warm-up over 50 steps, or a quarter of a shorter run, then a cosine to 0."""
    warmup = min(WARMUP_STEPS, steps // 4)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a training stands, beside its model."""

    step: int = 0
    """Optimiser steps done."""
    losses: tuple[float, ...] = ()
    """Of the last ones."""


class _SaveSchedule:
    """A few checkpoints a run, and more of a run that takes long."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._every = -(-num_steps // CHECKPOINTS_PER_RUN)
        self._saved_at = time.monotonic()
        self._seconds = 0.0

    def is_due(self, done: int) -> bool:
        """Args: done: steps; behind the last one comes the model itself."""
        wait = max(CHECKPOINT_SECONDS, self._seconds / SAVING_SHARE)
        is_late = time.monotonic() - self._saved_at >= wait
        return done < self._num_steps and (done % self._every == 0 or is_late)

    @contextmanager
    def saving(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - began


class OfflineTraining:
    """The steps of one training, on one rank."""

    def __init__(
        self, config: FitConfig, table: AnswerTable, loss: BatchLoss, model: Trainable
    ) -> None:
        """Raises: DataError if there are fewer examples than ranks."""
        self._config = config
        self._table = table
        self._loss = loss
        self._model = model
        self._examples, self._held_out = table.split(config.held_out_fraction, config.seed)
        # Equally many for every rank, also where the data do not fill one batch.
        world_size = dist.get_world_size()
        batch_size = min(config.batch_size, len(self._examples) // world_size * world_size)
        if not batch_size:
            raise DataError(
                f"{len(self._examples)} examples are too few for {world_size} workers; lower "
                "trainer.num_workers"
            )
        batches = plan_batches(
            table.example_lengths[self._examples],
            batch_size=batch_size,
            num_batches=config.steps or max(1, config.epochs * len(self._examples) // batch_size),
            seed=config.seed,
        )
        self._batches = [self._examples[batch] for batch in batches]

    def run(
        self,
        start: Progress,
        save: Callable[[Progress], None],
        tell: Callable[[Mapping[str, float]], None] = lambda figures: None,
    ) -> dict[str, float]:
        """Train from `start` on.

        Args:
            save: keeps model and progress; all ranks call it together.
            tell: takes the figures of each step: iteration (from 0), num_steps, loss, lr,
                gradient_norm and seconds.
        Returns: num_steps, and final_loss, the mean over the last steps.
        Raises: NumericsError where a gradient is not finite, on all ranks.
        """
        final_loss = self._train(start, save, tell)
        return {"num_steps": float(len(self._batches)), "final_loss": final_loss}

    def summarise(self) -> dict[str, float]:
        """What masks kept of a policy's answers; all ranks must call, and get the same."""
        assert isinstance(self._loss, PolicyLoss)
        return summarise_masks(self._loss, self._table, self._config.batch_size)

    def calibrate(self) -> Calibrations:
        """Of each head of a scorer by the held-out examples; as `summarise`."""
        assert isinstance(self._loss, ScorerLoss)
        return self._loss.calibrations(self._held_out_scores(self._loss), self._held_out)

    def _train(
        self,
        start: Progress,
        save: Callable[[Progress], None],
        tell: Callable[[Mapping[str, float]], None],
    ) -> float:
        config, num_steps = self._config, len(self._batches)
        schedule = _SaveSchedule(num_steps)
        losses = start.losses
        for step in range(start.step, num_steps):
            began = time.monotonic()
            rate = learning_rate(step, steps=num_steps, peak=config.lr)
            self._model.set_learning_rate(rate)
            losses = (*losses[1 - LAST_STEPS :], self._learn(self._batches[step]))
            norm = self._model.step()
            # The norm is the same on all ranks, so they stop together or not at all.
            if not math.isfinite(norm):
                raise NumericsError(
                    f"{config.objective.type} training: step {step}, gradient norm must be finite; "
                    f"try a learning rate below lr ({config.lr:g})"
                )
            seconds = time.monotonic() - began
            done = {"iteration": step, "num_steps": num_steps, "seconds": seconds}
            tell({**done, "loss": losses[-1], "lr": rate, "gradient_norm": norm})
            if self._agreed(schedule.is_due(step + 1)):
                with schedule.saving():
                    save(Progress(step=step + 1, losses=losses))
        return sum(losses) / max(1, len(losses))

    def _agreed(self, is_due: bool) -> bool:
        """What rank 0 says: the clocks of the ranks differ, and they can only save together."""
        if dist.get_world_size() == 1:
            return is_due
        said = torch.tensor(float(is_due), device=self._loss.device)
        dist.broadcast(said, src=0)
        return bool(said)

    def _learn(self, examples: Rows) -> float:
        """Gradients of one batch; its loss, summed over ranks."""
        plan = self._loss.plan(examples)
        passes = self._passes(examples)
        total = torch.zeros((), dtype=torch.float64, device=self._loss.device)
        for number, places in enumerate(passes):
            loss = self._loss.loss(self._model, plan, np.sort(places))
            self._model.backward(loss, is_last=number == len(passes) - 1)
            total += loss.detach()
        if dist.get_world_size() > 1:
            dist.all_reduce(total)
        return float(total)

    def _held_out_scores(self, loss: ScorerLoss) -> np.ndarray:
        """[A, H] of the answers in their order, each rank its share."""
        count, world_size = len(self._held_out), dist.get_world_size()
        # Equally many passes for every rank: the first ones come twice where they do not divide.
        places = np.resize(np.arange(count), -(-count // world_size) * world_size)
        rows = self._table.rows_of(self._held_out)
        # The last column counts how often each was scored.
        shape = (len(rows), len(loss.kinds) + 1)
        found = torch.zeros(shape, dtype=torch.float64, device=loss.device)
        for part in self._passes(self._held_out[places]):
            examples = self._held_out[places[part]]
            of_part = np.searchsorted(rows, self._table.rows_of(examples))
            found[of_part, :-1] += loss.end_scores(self._model, examples).double()
            found[of_part, -1] += 1.0
        if world_size > 1:
            dist.all_reduce(found)
        return (found[:, :-1] / found[:, -1:]).cpu().numpy()

    def _passes(self, examples: Rows) -> list[Rows]:
        """Places in `examples` of each pass of this rank."""
        return passes_of_rank(
            np.arange(len(examples)),
            self._table.example_lengths[examples],
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            max_tokens=self._config.trainer.max_tokens_per_batch,
        )
