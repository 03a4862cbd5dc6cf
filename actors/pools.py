"""Groups of Ray actors behind the protocols of `equilibrate.interfaces`.

Rollout and scoring workers are interchangeable: a lost one is replaced and only its share of the
work is done again. Learner ranks are not: when one is lost the group is made anew and the driver
goes back to the last checkpoint. No remote call waits without a deadline.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from equilibrate.errors import ResourceError, WorkerLostError
from equilibrate.types import (
    PromptBatch,
    Rollout,
    RolloutRequest,
    ScoredRollout,
    UpdateMetrics,
    Weights,
)

logger = logging.getLogger(__name__)

MakeWorker = Callable[[int], ActorHandle]
"""Starts worker number i; constructors run in the actor, so a failure shows at its first call."""


class WorkerPool:
    """Interchangeable workers; each is replaced when it dies or does not answer in time."""

    def __init__(
        self,
        name: str,
        make_worker: MakeWorker,
        *,
        num_workers: int,
        timeout_seconds: float,
        max_restarts: int,
    ) -> None:
        self._name = name
        self._make_worker = make_worker
        self._timeout_seconds = timeout_seconds
        self.restarts_left = max_restarts
        self.workers = [make_worker(index) for index in range(num_workers)]

    def map(
        self, method: str, shares: Sequence[tuple[Any, ...]], prepare: tuple[str, Any] | None = None
    ) -> list[Any]:
        """Call `method` once per share, share i on worker i, and return the answers in that order.

        Args:
            prepare: method and argument that bring a fresh replacement up to date before its share.
        Raises: ResourceError once more workers were lost than may be replaced; whatever the method
            raises.
        """
        return self.start(method, shares, prepare)()

    def start(
        self, method: str, shares: Sequence[tuple[Any, ...]], prepare: tuple[str, Any] | None = None
    ) -> Callable[[], list[Any]]:
        """Begin a `map`; calling the answer waits for it. Several may be under way."""
        workers = self.workers[: len(shares)]
        calls = {i: self._call(i, method, share) for i, share in enumerate(shares)}
        return partial(self._collect, workers, calls, method, shares, prepare)

    def _collect(
        self,
        workers: list[ActorHandle],
        calls: dict[int, ray.ObjectRef[Any]],
        method: str,
        shares: Sequence[tuple[Any, ...]],
        prepare: tuple[str, Any] | None,
    ) -> list[Any]:
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + self._timeout_seconds
        while calls:
            for index, call in list(calls.items()):
                try:
                    answers[index] = ray.get(call, timeout=max(0.0, deadline - time.monotonic()))
                    del calls[index]
                except (RayActorError, GetTimeoutError, WorkerLostError) as error:
                    # Another map under way may have met the same loss: one loss, one restart.
                    if self.workers[index] is workers[index]:
                        self._replace(index, error)
                    workers[index] = self.workers[index]
                    deadline = time.monotonic() + self._timeout_seconds
                    if prepare is not None:
                        self._call(index, *prepare)
                    calls[index] = self._call(index, method, shares[index])
        return [answers[index] for index in range(len(shares))]

    def _call(self, index: int, method: str, arguments: Any) -> ray.ObjectRef[Any]:
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        return getattr(self.workers[index], method).remote(*arguments)

    def _replace(self, index: int, error: Exception) -> None:
        reason = "did not answer in time" if isinstance(error, GetTimeoutError) else "died"
        if self.restarts_left == 0:
            raise ResourceError(
                f"{self._name} worker {index} {reason} and no restart is left; look at its log for "
                "the cause (memory is the usual one), then resume or raise max_restarts"
            ) from error
        self.restarts_left -= 1
        logger.warning("%s worker %d %s: replacing it", self._name, index, reason)
        ray.kill(self.workers[index])
        self.workers[index] = self._make_worker(index)


class RayRolloutPool:
    """vLLM workers that share the prompts of an iteration (`RolloutPool`)."""

    def __init__(self, pool: WorkerPool, seed_of: Callable[[int, str, int], int]) -> None:
        """`seed_of(iteration, prompt_id, copy)` gives every response its own seed."""
        self._pool = pool
        self._seed_of = seed_of
        self._weights: Weights | None = None

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
        shares = [(requests[i::num_workers], policy_version) for i in range(num_workers)]
        pending = self._pool.start("generate", shares, prepare=self._catch_up())

        def collect() -> list[Rollout]:
            answers = pending()
            return [answers[i % num_workers][i // num_workers] for i in range(len(requests))]

        return collect

    def sync(self, weights: Weights) -> None:
        self._weights = weights
        share = (weights.reference, weights.version)
        self._pool.map("update_weights", [share] * len(self._pool.workers))

    def _catch_up(self) -> tuple[str, Any] | None:
        # A fresh engine holds the weights of its folder, never the current ones.
        if self._weights is None:
            return None
        return "update_weights", (self._weights.reference, self._weights.version)


class RayScorer:
    """Scoring workers that share the rollouts of an iteration (`Scorer`)."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        num_workers = len(self._pool.workers)
        answers = self._pool.map(
            "score", [(list(rollouts[i::num_workers]),) for i in range(num_workers)]
        )
        return [answers[i % num_workers][i // num_workers] for i in range(len(rollouts))]


class RayLearnerGroup:
    """The ranks of one learner, called together (`Learner`)."""

    def __init__(
        self, make_ranks: Callable[[], list[ActorHandle]], *, timeout_seconds: float
    ) -> None:
        self._make_ranks = make_ranks
        self._timeout_seconds = timeout_seconds
        self._ranks = make_ranks()

    def update(
        self,
        scored: Sequence[ScoredRollout],
        *,
        iteration: int,
        multiplier: float,
        kl_coef: float,
    ) -> UpdateMetrics:
        shared = ray.put(list(scored))
        answers: list[UpdateMetrics] = self._all(
            "update", shared, iteration=iteration, multiplier=multiplier, kl_coef=kl_coef
        )
        return answers[0]

    def publish(self, version: int) -> Weights:
        # Every rank takes part, because a sharded policy is gathered; rank 0 alone packs it. The
        # buffers stay in the object store: only their reference passes through the driver.
        packed = [rank.pack_weights.options(num_returns=2).remote() for rank in self._ranks]
        self._collect([receipt for _, receipt in packed])
        return Weights(version=version, reference=packed[0][0])

    def save(self, folder: Path) -> None:
        self._all("save", str(folder))

    def load(self, folder: Path) -> None:
        self._all("load", str(folder))

    def export(self, folder: Path) -> None:
        self._all("export", str(folder))

    def restart(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = self._make_ranks()

    def _all(self, method: str, *arguments: Any, **named: Any) -> list[Any]:
        return self._collect([getattr(r, method).remote(*arguments, **named) for r in self._ranks])

    def _collect(self, references: list[ray.ObjectRef[Any]]) -> list[Any]:
        deadline = time.monotonic() + self._timeout_seconds
        waiting = list(references)
        try:
            while waiting:
                # The first failure must be seen at once: the other ranks wait for the lost one in a
                # collective that never ends.
                left = max(0.0, deadline - time.monotonic())
                done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
                ray.get(done or waiting, timeout=1.0)
            return list(ray.get(references, timeout=self._timeout_seconds))
        except (RayActorError, GetTimeoutError) as error:
            raise WorkerLostError(
                f"a learner rank is gone ({type(error).__name__}); the group restarts from the "
                "last checkpoint"
            ) from error
