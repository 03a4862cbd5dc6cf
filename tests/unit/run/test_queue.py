from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from equilibrate.errors import InputLostError, NumericsError
from equilibrate.run.queue import AverageRollouts, RolloutQueue
from equilibrate.types import PromptBatch, Rollout, Weights
from tests.fakes import FakeLearner, FakeRolloutPool, FakeSampler


class AnyVersionPool(FakeRolloutPool):
    """Holds whatever version it is asked for."""

    def start(self, batch: PromptBatch, policy_version: int) -> Callable[[], list[Rollout]]:
        self.version = policy_version
        return super().start(batch, policy_version)


def make_queue(*, max_policy_lag: int, iterations: int = 9) -> RolloutQueue:
    return RolloutQueue(
        FakeSampler(), AnyVersionPool([]), max_policy_lag=max_policy_lag, iterations=iterations
    )


def texts(rollouts: list[Rollout]) -> list[str]:
    return [rollout.prompt_id for rollout in rollouts]


def test_waiting_rollouts_survive_saving_unchanged(tmp_path: Path) -> None:
    queue = make_queue(max_policy_lag=2)
    queue.take(0)
    queue.save(tmp_path)
    again = make_queue(max_policy_lag=0)
    again.load(tmp_path)
    for iteration in (1, 2):
        kept, loaded = queue.take(iteration), again.take(iteration)
        assert texts(loaded) == texts(kept)
        for one, other in zip(kept, loaded, strict=True):
            assert (one.copy, one.category, one.policy_version, one.finish_reason) == (
                *(other.copy, other.category, other.policy_version, other.finish_reason),
            )
            for name in ("token_ids", "response_mask", "rollout_log_probs"):
                mine, theirs = getattr(one, name), getattr(other, name)
                assert mine.dtype == theirs.dtype
                assert np.array_equal(mine, theirs)


def test_without_lag_nothing_waits(tmp_path: Path) -> None:
    queue = make_queue(max_policy_lag=0)
    assert texts(queue.take(0)) == ["prompt 0", "prompt 1"]
    queue.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_loading_forgets_what_was_under_way(tmp_path: Path) -> None:
    queue = make_queue(max_policy_lag=1)
    queue.take(0)
    queue.load(tmp_path)
    # The sampler goes on where it stands: restoring it is the checkpoint's work.
    assert texts(queue.take(1)) == ["prompt 4", "prompt 5"]


def test_publishing_waits_for_what_is_under_way() -> None:
    pool = AnyVersionPool([])
    queue = RolloutQueue(FakeSampler(), pool, max_policy_lag=2, iterations=9)
    queue.take(0)
    phases: list[str] = []

    @contextmanager
    def clock(phase: str) -> Iterator[None]:
        assert pool.num_running == (2 if phase == "rollout" else 0)
        phases.append(phase)
        yield

    # The pool itself refuses new weights under running requests.
    queue.publish(Weights(version=1, reference=None), clock)
    assert phases == ["rollout", "sync"]
    assert pool.version == 1
    assert texts(queue.take(1)) == ["prompt 2", "prompt 3"]


def test_who_measures_the_average_leaves_the_last_weights_behind() -> None:
    journal: list[str] = []
    pool, learner = AnyVersionPool(journal), FakeLearner(journal)
    queue = RolloutQueue(FakeSampler(), pool, max_policy_lag=1, iterations=9)
    queue.take(0)
    batch = FakeSampler().next_batch(0)
    answers = AverageRollouts(pool, queue, learner).generate(batch, 3)
    assert len(answers) == len(batch.prompts)
    # What was under way has ended, the average came and went, and version 3 is there.
    assert [line for line in journal if line.startswith(("average", "sync"))] == [
        "average 3", "sync 3", "sync 3",
    ]  # fmt: skip
    assert pool.num_running == 0


class BrokenPool(AnyVersionPool):
    """A policy that says nothing but nan, or whose weights are lost."""

    error: Exception = NumericsError("a sampled token has a non-finite log-prob")

    def start(self, batch: PromptBatch, policy_version: int) -> Callable[[], list[Rollout]]:
        finish = super().start(batch, policy_version)

        def fail() -> list[Rollout]:
            finish()
            raise self.error

        return fail if batch.iteration else finish


@pytest.mark.parametrize("error", [BrokenPool.error, InputLostError("gone with its machine")])
def test_what_is_forgotten_ends_before_the_next_weights_come(
    error: Exception, tmp_path: Path
) -> None:
    pool = BrokenPool([])
    pool.error = error
    queue = RolloutQueue(FakeSampler(), pool, max_policy_lag=1, iterations=9)
    queue.take(0)
    queue.load(tmp_path)
    queue.publish(Weights(version=0, reference=None))
    assert pool.num_running == 0


def test_more_than_nine_iterations_ahead_come_back_in_order(tmp_path: Path) -> None:
    queue = make_queue(max_policy_lag=12, iterations=20)
    queue.take(0)
    queue.save(tmp_path)
    again = make_queue(max_policy_lag=0)
    again.load(tmp_path)
    assert texts(again.take(10)) == ["prompt 20", "prompt 21"]
    assert texts(again.take(2)) == ["prompt 4", "prompt 5"]
