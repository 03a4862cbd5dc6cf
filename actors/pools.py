"""Groups of workers behind the protocols of `equilibrate.interfaces`.

Rollout and scoring workers are interchangeable: a lost one is replaced and only its share of the
work is done again. Learner ranks are not: when one is lost the group is made anew and the driver
goes back to the last checkpoint. An error that a worker raises itself is nobody's loss: it ends the
run at once, as what it is. No remote call waits without a deadline.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayTaskError

from actors.handles import Call, NotStartedError, Task, Worker, task, write_stacks
from actors.learner import LearnerWorker
from actors.rollout import RolloutWorker
from actors.weights import SyncOutcome
from equilibrate.config.base import JudgeConfig, Phase
from equilibrate.errors import (
    InputLostError,
    KilledForMemoryError,
    OutOfMemoryError,
    ResourceError,
    WorkerLostError,
)
from equilibrate.evaluation import Verdict
from equilibrate.run.judging import JudgingScorer
from equilibrate.types import (
    Prompt,
    PromptBatch,
    Rollout,
    RolloutRequest,
    ScoredRollout,
    UpdateMetrics,
    Weights,
)

logger = logging.getLogger(__name__)

W = TypeVar("W")
T = TypeVar("T")

MakeWorker = Callable[[int], Worker[W]]
"""Starts worker number i; constructors run in the actor, so a failure shows at its first call."""
LOSS_SECONDS = 60.0
"""A rank that is killed breaks the collectives of the others before Ray says that it is gone: so
long after an error of one rank the others are watched. Ray finds a lost machine in 30 s."""
GOES_ON = "the same command goes on from the last checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How long each phase may take, and where the stacks go of what takes longer."""

    seconds: Callable[[Phase], float]
    folder: Path

    def deadline(self, phase: Phase, workers: Sequence[Worker[Any]]) -> float:
        """On the monotonic clock; a worker that has not started yet gets the time for it too."""
        fresh = any(not worker.is_started for worker in workers)
        return time.monotonic() + self.seconds(phase) + (self.seconds("start") if fresh else 0.0)

    def overdue(
        self, phase: Phase, late: Sequence[Worker[Any]], group: Sequence[Worker[Any]]
    ) -> WorkerLostError:
        """The error for workers that did not answer in time; writes what all of the group do."""
        files = (self.folder / f"stacks-{phase}-{n}.txt" for n in itertools.count())
        file = next(file for file in files if not file.exists())
        write_stacks(group, file)
        names = ", ".join(worker.name for worker in late)
        if homeless := ", ".join(worker.name for worker in late if worker.place is None):
            return WorkerLostError(
                f"no machine of the cluster had room for the {homeless} in {self.seconds(phase):g} "
                f"s and {self.seconds('start'):g} s to start (timeout_seconds, phase_seconds); add "
                "one for a lost one, or end what else runs there"
            )
        return WorkerLostError(
            f"the {names} did not answer in time: {phase!r} may take {self.seconds(phase):g} s "
            f"(timeout_seconds, phase_seconds.{phase}); what it was doing is in {file}"
        )


class WorkerPool(Generic[W]):
    """Interchangeable workers; each is replaced when it dies or does not answer in time."""

    def __init__(
        self, make_worker: MakeWorker[W], *, num_workers: int, watch: Watch, max_restarts: int
    ) -> None:
        self._make_worker = make_worker
        self._watch = watch
        self.restarts_left = max_restarts
        self.workers = [make_worker(index) for index in range(num_workers)]

    def renew(self, watch: Watch, max_restarts: int) -> None:
        """For the next run."""
        self._watch, self.restarts_left = watch, max_restarts

    def map(
        self, phase: Phase, tasks: Sequence[Task[W, T]], prepare: Task[W, Any] | None = None
    ) -> list[T]:
        """Carry out task i on worker i and return the answers in that order.

        Args:
            prepare: brings a fresh replacement up to date before its task.
        Raises: ResourceError once more workers were lost than may be replaced; whatever the method
            or the constructor raises.
        """
        return self.start(phase, tasks, prepare)()

    def start(
        self, phase: Phase, tasks: Sequence[Task[W, T]], prepare: Task[W, Any] | None = None
    ) -> Callable[[], list[T]]:
        """Begin a `map`; calling the answer waits for it. Several may be under way."""
        calls = [
            worker.call(phase, one)
            for worker, one in zip(self.workers[: len(tasks)], tasks, strict=True)
        ]
        return partial(self._collect, phase, calls, tasks, prepare)

    def _collect(
        self,
        phase: Phase,
        calls: list[Call[T]],
        tasks: Sequence[Task[W, T]],
        prepare: Task[W, Any] | None,
    ) -> list[T]:
        answers: dict[int, T] = {}
        prepared: dict[int, Call[Any]] = {}
        deadline = self._watch.deadline(phase, self.workers)
        while waiting := {c.reference: i for i, c in enumerate(calls) if i not in answers}:
            # The first to end, whichever it is: an error must not wait for the slowest worker.
            left = max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=left, fetch_local=False)
            index = waiting[done[0] if done else next(iter(waiting))]
            worker = calls[index].worker
            try:
                if not done:
                    raise self._watch.overdue(phase, [worker], [worker])
                left = max(1.0, deadline - time.monotonic())
                if index in prepared:
                    # Its error is the cause of that of the task, which came after it.
                    prepared[index].result(seconds=left)
                answers[index] = calls[index].result(seconds=left)
            except InputLostError as error:
                # Another worker would not find it either.
                raise InputLostError(f"{error}; {GOES_ON}") from error
            except WorkerLostError as error:
                # Another map under way may have met the same loss: one loss, one restart.
                if self.workers[index] is worker:
                    self._replace(index, error)
                if prepare is not None:
                    prepared[index] = self.workers[index].call("sync", prepare)
                calls[index] = self.workers[index].call(phase, tasks[index])
                deadline = self._watch.deadline(phase, self.workers)
        return [answers[index] for index in range(len(tasks))]

    def _replace(self, index: int, error: Exception) -> None:
        if self.restarts_left == 0:
            raise ResourceError(f"{error}\nno restart is left (max_restarts); {GOES_ON}") from error
        self.restarts_left -= 1
        logger.warning("replacing it: %s", error)
        self.workers[index].kill()
        self.workers[index] = self._make_worker(index)


class RayRolloutPool:
    """vLLM workers that share the prompts of an iteration (`RolloutPool`)."""

    def __init__(
        self, pool: WorkerPool[RolloutWorker], seed_of: Callable[[int, str, int], int]
    ) -> None:
        """`seed_of(iteration, prompt_id, copy)` gives every response its own seed."""
        self._pool = pool
        self._seed_of = seed_of
        self._update: Task[RolloutWorker, SyncOutcome] | None = None

    def generate(self, batch: PromptBatch, policy_version: int) -> list[Rollout]:
        return self.start(batch, policy_version)()

    def start(self, batch: PromptBatch, policy_version: int) -> Callable[[], list[Rollout]]:
        requests = [
            RolloutRequest(
                prompt_id=prompt.prompt_id,
                copy=copy,
                category=prompt.category,
                token_ids=prompt.token_ids,
                seed=self._seed_of(batch.iteration, prompt.prompt_id, copy),
            )
            for prompt, copy in batch.responses()
        ]
        num_workers = len(self._pool.workers)
        shares = [
            task(RolloutWorker.generate, requests[i::num_workers], policy_version)
            for i in range(num_workers)
        ]
        # A fresh engine holds the weights of its folder, never the current ones.
        pending = self._pool.start("generate", shares, prepare=self._update)

        def collect() -> list[Rollout]:
            answers = pending()
            return [
                # Here and not in the worker, which has no use for text.
                replace(answers[i % num_workers][i // num_workers], messages=prompt.conversation)
                for i, (prompt, _) in enumerate(batch.responses())
            ]

        return collect

    def sync(self, weights: Weights) -> None:
        reference: Any = weights.reference
        self._update = task(RolloutWorker.update_weights, reference, weights.version)
        self._pool.map("sync", [self._update] * len(self._pool.workers))


class RayScorer:
    """Scoring workers that share the rollouts of an iteration (`Scorer`)."""

    def __init__(self, pool: WorkerPool[JudgingScorer]) -> None:
        self._pool = pool

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        return self._shared(
            len(rollouts), lambda share: task(JudgingScorer.score, list(rollouts[share]))
        )

    def judge(
        self, judge: JudgeConfig, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> list[Verdict]:
        return self._shared(
            len(prompts),
            lambda share: task(
                JudgingScorer.judge, judge, list(prompts[share]), list(responses[share])
            ),
        )

    def _shared(self, count: int, ask: Callable[[slice], Task[JudgingScorer, list[T]]]) -> list[T]:
        """One answer to each of so many, of which every worker gets its share."""
        num_workers = len(self._pool.workers)
        tasks = [ask(slice(i, None, num_workers)) for i in range(num_workers)]
        answers = self._pool.map("score", tasks)
        return [answers[i % num_workers][i // num_workers] for i in range(count)]


class RayLearnerGroup:
    """The ranks of one learner, called together (`Learner`)."""

    def __init__(
        self,
        make_ranks: Callable[[int], list[Worker[LearnerWorker]]],
        *,
        watch: Watch,
        max_restarts: int,
    ) -> None:
        """`make_ranks(divisor)`: each pass takes the tokens of the settings over the divisor."""
        self._make_ranks = make_ranks
        self._watch = watch
        self._restarts_left = max_restarts
        self._divisor = 1
        self.ranks = make_ranks(self._divisor)

    def renew(self, watch: Watch, max_restarts: int) -> None:
        """Fresh ranks for the next run."""
        self._watch, self._divisor = watch, 1
        self.restart()
        self._restarts_left = max_restarts

    def update(
        self,
        scored: Sequence[ScoredRollout],
        *,
        iteration: int,
        multiplier: float,
        kl_coef: float,
    ) -> UpdateMetrics:
        shared: Any = ray.put(list(scored))
        todo = task(
            LearnerWorker.update,
            shared,
            iteration=iteration,
            multiplier=multiplier,
            kl_coef=kl_coef,
        )
        return self._all("update", todo)[0]

    def publish(self, version: int, *, averaged: bool = False) -> Weights:
        # Every rank takes part, because a sharded policy is gathered; rank 0 alone packs it. The
        # buffers stay in the object store: only their reference passes through the driver.
        todo = task(LearnerWorker.pack_weights, averaged=averaged)
        packed = [rank.call_for_two("sync", todo) for rank in self.ranks]
        self._collect("sync", [receipt for _, receipt in packed])
        return Weights(version=version, reference=packed[0][0].reference)

    def save(self, folder: Path) -> None:
        self._all("save", task(LearnerWorker.save, str(folder)))

    def load(self, folder: Path) -> None:
        self._all("load", task(LearnerWorker.load, str(folder)))

    def export(self, folder: Path, *, averaged: bool = False) -> None:
        self._all("export", task(LearnerWorker.export, str(folder), averaged=averaged))

    def restart(self) -> None:
        self._restarts_left -= 1
        for rank in self.ranks:
            rank.kill()
        self.ranks = self._make_ranks(self._divisor)

    def _all(self, phase: Phase, todo: Task[LearnerWorker, T]) -> list[T]:
        return self._collect(phase, [rank.call(phase, todo) for rank in self.ranks])

    def _collect(self, phase: Phase, calls: list[Call[T]]) -> list[T]:
        try:
            self._wait(phase, calls)
            return [call.result(seconds=self._watch.seconds(phase)) for call in calls]
        except WorkerLostError as error:
            logger.warning("the learner restarts from its last checkpoint: %s", error)
            raise

    def _wait(self, phase: Phase, calls: list[Call[Any]]) -> None:
        deadline = self._watch.deadline(phase, self.ranks)
        waiting = {call.reference: call for call in calls}
        while waiting:
            # The first failure must be seen at once: the other ranks wait for the lost one in a
            # collective that never ends.
            left = max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=left, fetch_local=False)
            if not done:
                late = [call.worker for call in waiting.values()]
                raise self._watch.overdue(phase, late, self.ranks)
            self._check(waiting.pop(done[0]), list(waiting.values()))

    def _check(self, call: Call[Any], others: Sequence[Call[Any]]) -> None:
        """Raises: the error of a rank, or the loss of another one that stands behind it."""
        try:
            call.result(seconds=LOSS_SECONDS)
        except (OutOfMemoryError, KilledForMemoryError) as error:
            if call.phase != "update" or self._divisor > 1 or self._restarts_left <= 0:
                raise
            self._divisor = 2
            raise WorkerLostError(f"{error}\nonce more, with passes of half the tokens") from error
        except (RayTaskError, NotStartedError) as error:
            _look_for_a_loss(others, error)
            raise


def _look_for_a_loss(calls: Sequence[Call[Any]], error: Exception) -> None:
    """Raises: WorkerLostError if a call ends with the death of its worker."""
    deadline = time.monotonic() + LOSS_SECONDS
    waiting = {call.reference: call for call in calls}
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=left, fetch_local=False)
        if not done:
            return
        try:
            waiting.pop(done[0]).result(seconds=1.0)
        except WorkerLostError as loss:
            raise loss from error
        except Exception:
            continue  # as broken by the same loss as the first
