"""The events of the loop: requests start and finish in an engine, batches are trained in turn."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from equilibrate.planner.costs import Costs

WATERMARK = 0.99
"""Of the cache: beyond it nothing new is admitted, so that those that run have room to grow."""


@dataclass(slots=True)
class Request:
    """One response to be sampled; `context` tokens must be in the cache before it goes on."""

    batch: int
    arrival: float
    context: float
    remaining: int


@dataclass(slots=True)
class Engine:
    """One rollout engine with continuous batching.

    A request that is done makes room for the next one at once; if the cache is full, the youngest
    gives its place back and is prefilled again later. Time moves from event to event: between two
    of them the batch is constant and the cache grows by one token a sequence and step.
    """

    costs: Costs
    now: float = 0.0
    preemptions: int = 0
    _step: int = 0
    _started: int = 0
    _cached: float = 0.0
    _waiting: deque[Request] = field(default_factory=deque)
    _running: list[tuple[int, int, Request]] = field(default_factory=list)
    """Heap of (step at which it finishes, order of start, request)."""
    _left: dict[int, int] = field(default_factory=dict)

    def submit(self, batch: int, lengths: Iterable[int], arrival: float) -> None:
        """Queue the requests of a batch, which arrive no earlier than those of earlier ones."""
        prompt = self.costs.workload.prompt_tokens
        requests = [Request(batch, arrival, prompt, int(length)) for length in lengths]
        self._waiting.extend(requests)
        self._left[batch] = len(requests)

    def pause(self, seconds: float) -> None:
        """Stand still while weights arrive; an engine without work loses nothing."""
        if self._waiting and not self._running:
            self.now = max(self.now, self._waiting[0].arrival)
        if self._waiting or self._running:
            self.now += seconds

    def run(self, batch: int) -> float:
        """Advance until the batch is done; the time when it was."""
        while self._left[batch]:
            self._admit()
            if self._running:
                self._advance()
            else:
                self.now = max(self.now, self._waiting[0].arrival)
        return self.now

    def _admit(self) -> None:
        prefilled = 0.0
        while self._waiting and self._waiting[0].arrival <= self.now:
            request = self._waiting[0]
            full = len(self._running) >= self.costs.placement.max_sequences
            crowded = self._cached + request.context > WATERMARK * self.costs.cache_limit
            if self._running and (full or crowded):
                break
            self._waiting.popleft()
            self._started += 1
            heapq.heappush(self._running, (self._step + request.remaining, self._started, request))
            self._cached += request.context
            prefilled += request.context
        self.now += self.costs.prefill_seconds(prefilled)

    def _advance(self) -> None:
        """To the next request that finishes, to a full cache or to an arrival: the earliest."""
        count = len(self._running)
        steps = self._running[0][0] - self._step
        room = int((self.costs.cache_limit - self._cached) // count)
        if room < steps and count > 1:
            if room < 1:
                self._preempt()
                return
            steps = room
        seconds = self._seconds_of(count, steps)
        if self._waiting and self.now < self._waiting[0].arrival < self.now + seconds:
            until = (self._waiting[0].arrival - self.now) / seconds
            steps = max(1, round(steps * until))
            seconds = self._seconds_of(count, steps)
        self.now += seconds
        self._step += steps
        self._cached += steps * count
        while self._running and self._running[0][0] <= self._step:
            _, _, request = heapq.heappop(self._running)
            self._cached -= request.context + request.remaining
            self._left[request.batch] -= 1

    def _preempt(self) -> None:
        """The youngest request waits again, in front, with what it has sampled so far."""
        youngest = max(self._running, key=lambda entry: entry[1])
        self._running.remove(youngest)
        heapq.heapify(self._running)
        finish, _, request = youngest
        sampled = request.remaining - (finish - self._step)
        request.context += sampled
        request.remaining -= sampled
        self._cached -= request.context
        self._waiting.appendleft(request)
        self.preemptions += 1

    def _seconds_of(self, count: int, steps: int) -> float:
        """Of steps with the same batch and a growing cache: all as long as the middle one."""
        middle = self._cached + (steps - 1) * count / 2
        return steps * self.costs.decode_seconds(count, middle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Seconds of a steady iteration. Where parts overlap, they add up to more than the step."""

    step: float
    rollout: float
    scoring: float
    update: float
    sync: float
    fixed: float
    train_idle: float
    """Fraction of the step in which the training GPUs wait for rollouts."""


def simulate(costs: Costs, *, iterations: int = 4, seed: int = 0) -> Simulated:
    """Run the loop and average over `iterations`, after two of warm-up for each one of lag.

    Batch k may start once version k - lag of the policy is in the engines, and is trained on once
    it is complete and version k is trained. Engines stand still while weights arrive. Requests are
    dealt longest first, like to any balanced pool, so engine 0 is the last one to finish and the
    only one that has to be simulated.
    """
    generator = np.random.default_rng(seed)
    lag, work = costs.placement.max_policy_lag, costs.workload
    warmups = 2 * lag
    scoring, update = costs.scoring_seconds(), costs.update_seconds()
    sync, fixed = costs.sync_seconds(), costs.efficiency.fixed_seconds
    engine, submitted = Engine(costs), 0
    versions, durations, idle = [0.0], [], []
    for batch in range(warmups + iterations):
        while submitted <= batch + lag:
            lengths = work.lengths.sample(work.num_rollouts, generator)
            arrival = versions[max(0, submitted - lag)]
            engine.submit(submitted, lengths[:: costs.placement.num_engines], arrival)
            submitted += 1
        started = versions[max(0, batch - lag)]
        ready = engine.run(batch)
        durations.append(ready - started)
        idle.append(max(0.0, ready - versions[-1]))
        trained = max(ready, versions[-1]) + scoring + update + fixed
        versions.append(trained + sync)
        engine.pause(sync)
    step = (versions[-1] - versions[warmups]) / iterations
    return Simulated(
        step=step,
        rollout=float(np.mean(durations[warmups:])),
        scoring=scoring,
        update=update,
        sync=sync,
        fixed=fixed,
        train_idle=float(np.mean(idle[warmups:])) / step,
    )
