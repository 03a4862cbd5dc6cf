from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from equilibrate.config.constraint import ProjectedMultiplier
from equilibrate.driver import MAX_SKIPPED_UPDATES, Parts, train
from equilibrate.errors import ConfigError, DiskError, NumericsError, WorkerLostError
from equilibrate.run.checkpoint import CheckpointStore
from equilibrate.run.controllers import KLStop
from equilibrate.run.queue import RolloutQueue
from equilibrate.run.state import RunCheckpoints
from equilibrate.run.watch import RunWatch
from equilibrate.types import Rollout, ScoredRollout
from tests.fakes import (
    FakeController,
    FakeLearner,
    FakeRolloutPool,
    FakeSampler,
    FakeScorer,
    MemorySink,
)


class Run:
    """One process's view of a run folder, built from fakes around the real checkpoints."""

    def __init__(
        self,
        folder: Path,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        seed: int = 0,
        max_policy_lag: int = 0,
        iterations: int = 9,
        stop_at: float | None = None,
        **learner: Any,
    ) -> None:
        """Args: learner: when it skips, is lost or finds the disk full."""
        self.journal: list[str] = []
        self.sampler = FakeSampler()
        self.rollouts = FakeRolloutPool(self.journal)
        self.learner = FakeLearner(self.journal, **learner)
        self.multiplier, self.kl = FakeController(), FakeController()
        self.early_stop, self.sink = KLStop(stop_at), MemorySink()
        steering = {"multiplier": self.multiplier, "kl": self.kl, "early_stop": self.early_stop}
        self.store = CheckpointStore(folder, keep=2)
        ahead = {"max_policy_lag": max_policy_lag, "iterations": iterations}
        self.queue = RolloutQueue(self.sampler, self.rollouts, **ahead)
        self.parts = Parts(
            sampler=self.sampler,
            queue=self.queue,
            scorer=FakeScorer(self.journal),
            learner=self.learner,
            **steering,
            sink=self.sink,
            watch=RunWatch({"reward": {}, "cost": {}}, ProjectedMultiplier()),
            checkpoints=RunCheckpoints(
                self.store,
                learner=self.learner,
                queue=self.queue,
                sink=self.sink,
                stateful={"sampler": self.sampler, **steering},
                fixed={"seed": seed},
                defaults={},
            ),
            evaluate=lambda iteration: self.journal.append(f"evaluate {iteration}"),
            should_stop=should_stop,
        )

    def train(self, iterations: int, *, max_restarts: int = 1) -> int:
        try:
            return train(
                self.parts, iterations=iterations, checkpoint_every=2, max_restarts=max_restarts
            )
        finally:
            self.store.close()


def test_one_iteration_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.train(1) == 1
    assert run.journal == ["sync 0", "evaluate 0", "generate 0", "score", "update 0", "sync 1"]


def test_multiplier_moves_before_the_policy_and_kl_after(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train(2)
    # The fake's value counts what it has seen: the first update already uses one observation.
    assert run.learner.multipliers == [1.0, 2.0]
    assert [row["kl_coef"] for _, row in run.sink.rows] == [0.0, 1.0]


def test_metrics_hold_steering_and_update(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train(1)
    ((iteration, row),) = run.sink.rows
    assert iteration == 0
    assert row["multiplier"] == 1.0
    assert row["policy_loss"] == 0.0
    assert row["skipped"] == 0.0
    assert row["mixture_GENERAL"] == 1.0
    assert set(run.sink.seconds[0]) == {"rollout", "score", "update", "sync", "iteration"}


def test_a_run_of_another_settings_format_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr("equilibrate.run.state.SETTINGS_FORMAT", 1)
        Run(tmp_path).train(2)
    with pytest.raises(ConfigError, match=r"iteration-2: was saved under settings_format 1, and"):
        Run(tmp_path).train(3)


def test_resumed_run_repeats_nothing_and_misses_nothing(tmp_path: Path) -> None:
    straight = Run(tmp_path / "straight")
    straight.train(5)
    first = Run(tmp_path / "halves", should_stop=iter([False] * 3 + [True]).__next__)
    assert first.train(5) == 3
    second = Run(tmp_path / "halves")
    assert second.train(5) == 5
    assert first.rollouts.prompts + second.rollouts.prompts == straight.rollouts.prompts
    assert first.sink.rows + second.sink.rows == straight.sink.rows


def test_a_full_disk_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Save 1 is that of iteration 0; the second and the third, of iterations 2 and 4, are refused.
    run = Run(tmp_path, full_at_save=(2, 3))
    assert run.train(7) == 7
    said = [record.message for record in caplog.records if "No space left" in record.message]
    assert len(said) == 2
    assert all("the run goes on" in line for line in said)
    assert [iteration for iteration, _ in run.sink.rows] == list(range(7))
    assert not list(tmp_path.glob("tmp-*"))


def test_a_disk_that_stays_full_ends_the_run_which_goes_on_later(tmp_path: Path) -> None:
    run = Run(tmp_path, full_at_save=(3, 4, 5))
    with pytest.raises(DiskError, match=r"iteration-8: .*No space left"):
        run.train(9)
    assert (tmp_path / "LATEST").read_text() == "iteration-2"
    straight, again = Run(tmp_path / "straight"), Run(tmp_path)
    straight.train(9)
    assert again.train(9) == 9
    assert run.sink.rows[:2] + again.sink.rows == straight.sink.rows


@pytest.mark.parametrize("save", [1, 2])
def test_the_first_save_and_the_last_may_not_fail(tmp_path: Path, save: int) -> None:
    with pytest.raises(DiskError):
        Run(tmp_path, full_at_save=(save,)).train(1)


def test_with_lag_one_the_next_rollouts_start_before_the_update(tmp_path: Path) -> None:
    run = Run(tmp_path, max_policy_lag=1, iterations=3)
    assert run.train(3) == 3
    assert run.journal == [
        *("sync 0", "evaluate 0", "generate 0", "generate 0", "score", "update 0", "sync 1"),
        *("evaluate 1", "generate 1", "score", "update 1", "sync 2"),
        # The last iteration has been sampled already: nothing more is asked for.
        *("evaluate 2", "score", "update 2", "sync 3"),
    ]
    # Iteration 0 samples from version 0; later ones are one version behind.
    assert [row["policy_lag"] for _, row in run.sink.rows] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("max_policy_lag", [1, 2, 5])
def test_resumed_run_with_lag_learns_from_the_same_rollouts(
    tmp_path: Path, max_policy_lag: int
) -> None:
    straight = Run(tmp_path / "straight", max_policy_lag=max_policy_lag)
    straight.train(9)
    stop = iter([False] * 3 + [True]).__next__
    first = Run(tmp_path / "halves", should_stop=stop, max_policy_lag=max_policy_lag)
    assert first.train(9) == 3
    second = Run(tmp_path / "halves", max_policy_lag=max_policy_lag)
    assert second.train(9) == 9
    # What was on its way is kept, not sampled again.
    assert first.rollouts.prompts + second.rollouts.prompts == straight.rollouts.prompts
    assert first.sink.rows + second.sink.rows == straight.sink.rows


def test_finished_run_does_nothing_more(tmp_path: Path) -> None:
    Run(tmp_path).train(2)
    again = Run(tmp_path)
    assert again.train(2) == 2
    assert again.journal == ["sync 2"]


def test_lost_learner_goes_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, lost_at=(4,))
    assert run.train(4) == 4
    # Updates 0, 1 are saved at 2; update 2 is done, update 3 is lost; so 2 and 3 are done again.
    updates = [entry for entry in run.journal if entry.startswith(("update", "restart"))]
    assert updates == ["update 0", "update 1", "update 2", "restart", "update 2", "update 3"]
    assert [iteration for iteration, _ in run.sink.rows] == [0, 1, 2, 3]
    assert run.learner.num_updates == 4


def test_loss_before_the_first_checkpoint_starts_over(tmp_path: Path) -> None:
    run = Run(tmp_path, lost_at=(1,))
    assert run.train(2) == 2
    assert run.rollouts.prompts[:2] == run.rollouts.prompts[2:4] == ["prompt 0", "prompt 1"]
    assert run.learner.num_updates == 2


@pytest.mark.parametrize("save", [1, 2, 3])
def test_loss_in_any_save_starts_over(tmp_path: Path, save: int) -> None:
    # The first save is of iteration 0, the second in the middle, the third at the end.
    run = Run(tmp_path, lost_at_save=(save,))
    assert run.train(3) == 3
    assert run.journal.count("restart") == 1
    assert [iteration for iteration, _ in run.sink.rows] == [0, 1, 2]
    assert run.learner.num_updates == 3


def test_a_loss_in_a_restart_costs_one_restart_more(tmp_path: Path) -> None:
    run = Run(tmp_path / "enough", lost_at=(2,), lost_at_restart=(1,))
    assert run.train(3, max_restarts=2) == 3
    assert run.journal.count("restart") == 2
    assert run.learner.num_updates == 3
    run = Run(tmp_path / "too few", lost_at=(2,), lost_at_restart=(1,))
    with pytest.raises(WorkerLostError):
        run.train(3, max_restarts=1)
    assert run.journal.count("restart") == 1


def test_too_many_losses_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, lost_at=(1, 2))
    with pytest.raises(WorkerLostError):
        run.train(2, max_restarts=1)


def test_skipped_updates_are_counted_and_forgiven(tmp_path: Path) -> None:
    run = Run(tmp_path, skip_at=(1, 2, 4))
    assert run.train(5) == 5
    assert [row["skipped"] for _, row in run.sink.rows] == [1.0, 1.0, 0.0, 1.0, 0.0]


def test_what_steers_stays_put_where_an_update_is_skipped(tmp_path: Path) -> None:
    run = Run(tmp_path, skip_at=(2,))
    assert run.train(3) == 3
    # Moved for the second update, put back, and moved again from there for the third.
    assert run.learner.multipliers == [1.0, 2.0, 2.0]
    assert [row["multiplier"] for _, row in run.sink.rows] == [1.0, 1.0, 2.0]
    assert [row["kl_coef"] for _, row in run.sink.rows] == [0.0, 1.0, 1.0]
    # Two prompts an iteration, of two of the three.
    assert run.sampler.observed == 4


def test_a_policy_too_far_from_its_reference_ends_the_run(tmp_path: Path) -> None:
    # KL is 0, 0.01, 0.02 and, above the limit first, 0.03 in iteration 3, which is whole.
    run = Run(tmp_path, stop_at=0.025)
    assert run.train(9) == 4
    assert run.early_stop.is_reached
    assert [iteration for iteration, _ in run.sink.rows] == [0, 1, 2, 3]
    # It is done: again, or for longer, nothing more is learned.
    for iterations in (9, 20):
        again = Run(tmp_path, stop_at=0.025)
        assert again.train(iterations) == 4
        assert again.journal == ["sync 4"]
        assert again.early_stop.is_reached
    # With more room it goes on where it was.
    further = Run(tmp_path, stop_at=0.045)
    assert further.train(9) == 6
    assert [row["kl"] for _, row in further.sink.rows] == pytest.approx([0.04, 0.05])


def test_an_early_stop_that_is_lost_in_its_save_comes_again(tmp_path: Path) -> None:
    # Saves: 0, 2, 4, and the last one of 4, which is lost; from 4 nothing is left to do.
    run = Run(tmp_path, stop_at=0.025, lost_at_save=(4,))
    assert run.train(9) == 4
    assert [iteration for iteration, _ in run.sink.rows] == [0, 1, 2, 3]


class HalfBrokenScorer(FakeScorer):
    """Has no reward for the first of every two rollouts."""

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        first, *rest = super().score(rollouts)
        return [replace(first, reward=math.nan), *rest]


def test_what_has_no_score_steers_nothing_and_is_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    scorer = HalfBrokenScorer(run.journal)
    run.parts = replace(run.parts, scorer=scorer)
    assert run.train(3) == 3
    assert run.sampler.observed == 3
    assert [row["left_out_fraction"] for _, row in run.sink.rows] == [0.5, 0.5, 0.5]
    assert [row["reward"] for _, row in run.sink.rows] == [1.0, 1.0, 1.0]


def test_a_run_that_has_gone_on_for_longer_is_not_cut_short(tmp_path: Path) -> None:
    Run(tmp_path).train(6)
    with pytest.raises(ConfigError, match=r"iterations \(4\) must be at least the 6"):
        Run(tmp_path).train(4)


def test_skipped_updates_in_a_row_go_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    # Updates 0 and 1 are saved at 2; 2 is learned from, 3 to 5 are not: 2 comes again.
    run = Run(tmp_path, skip_at=(4, 5, 6))
    assert run.train(6) == 6
    assert run.learner.calls == 6 + 4
    assert run.learner.num_updates == 6
    assert run.learner.multipliers[6:] == [3.0, 4.0, 5.0, 6.0]
    straight = Run(tmp_path / "straight")
    straight.train(6)
    assert run.sink.rows == straight.sink.rows
    assert "restart" not in run.journal


def test_skipped_updates_in_a_row_end_the_run_the_second_time(tmp_path: Path) -> None:
    run = Run(tmp_path, skip_at=tuple(range(1, 2 * MAX_SKIPPED_UPDATES + 1)))
    with pytest.raises(NumericsError, match=r"3 updates in a row .* again after going back"):
        run.train(9)
    assert len(run.sink.rows) == MAX_SKIPPED_UPDATES


def test_lost_learner_forgets_the_skips_that_it_goes_back_behind(tmp_path: Path) -> None:
    # Two skips, a loss, and after it two others: never three in a row.
    run = Run(tmp_path, skip_at=(1, 2, 4, 5), lost_at=(3,))
    assert run.train(3) == 3
    assert run.learner.num_updates == 1


def test_resume_with_another_seed_is_refused(tmp_path: Path) -> None:
    Run(tmp_path).train(1)
    with pytest.raises(ConfigError, match=r"seed \(1\) must stay .* \(0\)"):
        Run(tmp_path, seed=1).train(2)


def test_a_slow_scorer_shows_in_the_split_and_no_work_piles_up_before_it(tmp_path: Path) -> None:
    run, ahead = Run(tmp_path, max_policy_lag=2), []
    scorer = run.parts.scorer

    class SlowScorer:
        def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
            ahead.append(run.rollouts.num_running)
            time.sleep(0.05)
            return scorer.score(rollouts)

    run.parts = replace(run.parts, scorer=SlowScorer())
    assert run.train(9) == 9
    # Whatever the scorer takes, sampling is as far ahead as the lag allows, and no further.
    assert ahead == [2, 1, 1, 1, 1, 1, 1, 0, 0]
    for seconds in run.sink.seconds:
        assert seconds["score"] == max(seconds[phase] for phase in ("rollout", "score", "update"))
