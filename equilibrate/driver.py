"""The training loop: one iteration after another, on one screen.

    prompts -> rollouts -> scores -> multiplier -> update -> sync

The driver sees Protocols only. Policy version v is the policy after v iterations: iteration v
learns from rollouts of version v, or of an older one where the queue may run ahead, and publishes
v + 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from equilibrate.errors import NumericsError, WorkerLostError
from equilibrate.interfaces import Learner, MetricSink, PromptSampler, RolloutPool, Scorer
from equilibrate.run.metrics import mixture_metrics, rollout_metrics
from equilibrate.run.queue import RolloutQueue
from equilibrate.types import ScoredRollout, UpdateMetrics

MAX_SKIPPED_UPDATES = 3
"""Skipped updates in a row after which a run stops: the next one would be skipped too."""


class Controller(Protocol):
    """A number that steers the update: the multiplier of the cost, the weight of the KL."""

    @property
    def value(self) -> float: ...

    def observe(self, scored: Sequence[ScoredRollout]) -> None: ...


class Checkpoints(Protocol):
    def save(self, iteration: int) -> None: ...

    def restore(self) -> int:
        """Load the newest checkpoint into the parts and return its iteration.

        A fresh run is saved as iteration 0 first, so that a loss at any moment has a way back.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a run is made of, wired in `actors/launch.py`."""

    sampler: PromptSampler
    rollouts: RolloutPool
    queue: RolloutQueue
    scorer: Scorer
    learner: Learner
    multiplier: Controller
    kl: Controller
    sink: MetricSink
    checkpoints: Checkpoints
    evaluate: Callable[[int], None]
    """Called before every iteration; measures the policy at the versions it picks."""
    should_stop: Callable[[], bool]
    """True once the run was asked to stop (SIGTERM)."""


@dataclass(slots=True)
class PhaseClock:
    """Seconds per phase of one iteration, on a monotonic clock."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def total(self) -> Mapping[str, float]:
        return {**self.seconds, "iteration": time.perf_counter() - self.started}


def run_iteration(parts: Parts, iteration: int) -> UpdateMetrics:
    """Sample, score, steer, learn and publish, once."""
    clock = PhaseClock()
    with clock("rollout"):
        rollouts = parts.queue.take(iteration)
    with clock("score"):
        scored = parts.scorer.score(rollouts)
    # Safe RLHF moves the multiplier before the policy, on the costs of the rollouts at hand.
    parts.multiplier.observe(scored)
    with clock("update"):
        update = parts.learner.update(
            scored,
            iteration=iteration,
            multiplier=parts.multiplier.value,
            kl_coef=parts.kl.value,
        )
    with clock("rollout"):
        parts.queue.wait()
    with clock("sync"):
        parts.rollouts.sync(parts.learner.publish(iteration + 1))
    _record(parts, iteration, scored, update)
    parts.sink.write_seconds(iteration, clock.total())
    parts.kl.observe(scored)
    parts.sampler.observe(scored)
    return update


def train(parts: Parts, *, iterations: int, checkpoint_every: int, max_restarts: int) -> int:
    """Run to `iterations`, or until asked to stop; returns the iteration reached, which is saved.

    Raises: NumericsError after `MAX_SKIPPED_UPDATES` skipped updates in a row, WorkerLostError
    after more than `max_restarts` lost learner groups.
    """
    iteration: int | None = None
    skipped = restarts = 0
    while True:
        # A rank can be lost in every call to the learner, the first and the last save included.
        try:
            if iteration is None:
                iteration = _resume(parts)
            if iteration >= iterations or parts.should_stop():
                parts.checkpoints.save(iteration)
                return iteration
            parts.evaluate(iteration)
            update = run_iteration(parts, iteration)
            iteration += 1
            skipped = skipped + 1 if update.skipped else 0
            if iteration % checkpoint_every == 0 and not skipped:
                parts.checkpoints.save(iteration)
        except WorkerLostError:
            restarts += 1
            if restarts > max_restarts:
                raise
            iteration = None
            parts.learner.restart()
        if skipped >= MAX_SKIPPED_UPDATES:
            raise NumericsError(
                f"iteration {iteration}: {skipped} updates in a row were skipped because a loss or "
                "a score was not finite; lower learner.policy_lr, or check the scorers"
            )


def _resume(parts: Parts) -> int:
    iteration = parts.checkpoints.restore()
    parts.rollouts.sync(parts.learner.publish(iteration))
    return iteration


def _record(
    parts: Parts, iteration: int, scored: Sequence[ScoredRollout], update: UpdateMetrics
) -> None:
    steering = {"multiplier": parts.multiplier.value, "kl_coef": parts.kl.value}
    mixture = mixture_metrics(parts.sampler.realised_mixture())
    lag = iteration - sum(s.rollout.policy_version for s in scored) / len(scored)
    parts.sink.write(
        iteration,
        {
            **rollout_metrics(scored),
            **steering,
            **mixture,
            "policy_lag": lag,
            **update.values,
            "skipped": float(update.skipped),
        },
    )
