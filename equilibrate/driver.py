"""The training loop: one iteration after another, on one screen.

    prompts -> rollouts -> scores -> multiplier -> update -> sync

The driver sees Protocols only. Policy version v is the policy after v iterations: iteration v
learns from rollouts of version v, or of an older one where the queue may run ahead, and publishes
v + 1.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from equilibrate.errors import ConfigError, NumericsError, WorkerLostError
from equilibrate.interfaces import Learner, MetricSink, PromptSampler, Scorer
from equilibrate.run.metrics import mixture_metrics, rollout_metrics
from equilibrate.run.queue import RolloutQueue
from equilibrate.run.watch import RunWatch
from equilibrate.types import ScoredRollout, UpdateMetrics

logger = logging.getLogger(__name__)

MAX_SKIPPED_UPDATES = 3
"""Skipped updates in a row after which a run goes back to its last checkpoint. It does so once:
what comes again from there would come a third time."""


class Controller(Protocol):
    """A number that steers the update: the multiplier of the cost, the weight of the KL."""

    @property
    def value(self) -> float: ...

    def observe(self, scored: Sequence[ScoredRollout]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class EarlyStop(Protocol):
    """Ends a run before its last iteration, for good."""

    @property
    def is_reached(self) -> bool: ...

    def observe(self, values: Mapping[str, float]) -> None: ...


class Checkpoints(Protocol):
    def save(self, iteration: int) -> None: ...

    def try_save(self, iteration: int) -> None:
        """`save` in the midst of a run, which goes on where the disk refuses for a while."""

    def restore(self) -> int:
        """Load the newest checkpoint into the parts and return its iteration.

        A fresh run is saved as iteration 0 first, so that a loss at any moment has a way back.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a run is made of, wired in `actors/launch.py`."""

    sampler: PromptSampler
    queue: RolloutQueue
    """Of the generators, whose weights nothing else changes."""
    scorer: Scorer
    learner: Learner
    multiplier: Controller
    kl: Controller
    sink: MetricSink
    watch: RunWatch
    checkpoints: Checkpoints
    early_stop: EarlyStop
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
    # The learner gets all, so that its minibatches keep their size, and leaves out the same ones.
    whole = [rollout for rollout in scored if not rollout.broken]
    # Safe RLHF moves the multiplier before the policy, on the costs of the rollouts at hand.
    multiplier_before = parts.multiplier.state_dict()
    parts.multiplier.observe(whole)
    with clock("update"):
        update = parts.learner.update(
            scored,
            iteration=iteration,
            multiplier=parts.multiplier.value,
            kl_coef=parts.kl.value,
        )
    with clock("sync"):
        weights = parts.learner.publish(iteration + 1)
    parts.queue.publish(weights, clock)
    if update.skipped:
        # What the policy did not answer must not count against it: all that steers stays put.
        parts.multiplier.load_state_dict(multiplier_before)
    _record(parts, iteration, scored, update)
    parts.early_stop.observe(update.values)
    parts.sink.write_seconds(iteration, clock.total())
    if not update.skipped:
        parts.kl.observe(whole)
        parts.sampler.observe(whole)
    return update


def train(parts: Parts, *, iterations: int, checkpoint_every: int, max_restarts: int) -> int:
    """Run to `iterations`, or to an early stop, or until asked to stop; returns the iteration
    reached, which is saved.

    Raises: NumericsError where `MAX_SKIPPED_UPDATES` updates in a row are skipped a second time,
    WorkerLostError after more than `max_restarts` lost learner groups.
    """
    iteration: int | None = None
    skipped = restarts = 0
    has_gone_back = is_lost = False
    while True:
        # A rank can be lost in every call to the learner, the first and the last save included, and
        # while the group starts again.
        try:
            if is_lost:
                parts.learner.restart()
                is_lost = False
            if iteration is None:
                iteration, skipped = _resume(parts), 0
                _require_reached(iteration, iterations)
            is_done = iteration >= iterations or parts.early_stop.is_reached
            if is_done or parts.should_stop():
                parts.checkpoints.save(iteration)
                return iteration
            parts.evaluate(iteration)
            update = run_iteration(parts, iteration)
            iteration += 1
            skipped = skipped + 1 if update.skipped else 0
            if iteration % checkpoint_every == 0 and not skipped:
                parts.checkpoints.try_save(iteration)
        except WorkerLostError:
            restarts += 1
            if restarts > max_restarts:
                raise
            iteration, is_lost = None, True
        if skipped >= MAX_SKIPPED_UPDATES and iteration is not None:
            what = (
                f"iteration {iteration}: {skipped} updates in a row were skipped because a loss or "
                "all scores were not finite"
            )
            if has_gone_back:
                raise NumericsError(
                    f"{what}, again after going back to a checkpoint; lower learner.policy_lr, or "
                    "check the scorers"
                )
            logger.warning("%s; going back to the last checkpoint, once", what)
            has_gone_back, iteration = True, None


def _require_reached(iteration: int, iterations: int) -> None:
    """Raises: ConfigError if the run has gone on for longer than it is now asked to."""
    if iteration > iterations:
        raise ConfigError(
            f"iterations ({iterations}) must be at least the {iteration} that the run in this "
            "folder has done; raise it, or choose another output folder"
        )


def _resume(parts: Parts) -> int:
    iteration = parts.checkpoints.restore()
    parts.queue.publish(parts.learner.publish(iteration))
    return iteration


def _record(
    parts: Parts, iteration: int, scored: Sequence[ScoredRollout], update: UpdateMetrics
) -> None:
    steering = {"multiplier": parts.multiplier.value, "kl_coef": parts.kl.value}
    mixture = mixture_metrics(parts.sampler.realised_mixture())
    lag = iteration - sum(s.rollout.policy_version for s in scored) / len(scored)
    row = {
        **rollout_metrics(scored),
        **steering,
        **mixture,
        "policy_lag": lag,
        **update.values,
        "skipped": float(update.skipped),
    }
    parts.sink.write(iteration, row)
    parts.watch.observe(scored, row)
