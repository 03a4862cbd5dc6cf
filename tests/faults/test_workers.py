"""Workers that cannot start, die, hang, are slow or get no memory."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from equilibrate.run.sinks import read_rows
from tests.faults.scenes import processes, scene
from tests.integration import runs


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_inputs(tmp_path_factory.mktemp("inputs"))


NO_MEMORY = (
    "actors.learner:LearnerWorker.update:"
    "import torch; self._passes.max_tokens_per_batch > {} and torch.empty(2**50)"
)


def test_passes_without_memory_are_halved_once(settings: Path, tmp_path: Path) -> None:
    with scene(settings, tmp_path, fault=NO_MEMORY.format(96)) as run:
        said = run.ends(0)
    assert "once more, with passes of half the tokens" in said
    assert "lower learner.max_tokens_per_batch" in said
    assert runs.num_rows(run.output) == runs.ITERATIONS


def test_a_worker_that_cannot_start_ends_the_run_with_its_own_error(
    settings: Path, tmp_path: Path
) -> None:
    fault = (
        "equilibrate.learning.scoring:ScoringWorker.__init__:"
        "from equilibrate.errors import DataError; raise DataError('scorer/weights: torn')"
    )
    with scene(settings, tmp_path, fault=fault) as run:
        said = run.ends(3)
    assert "error: scorer/weights: torn" in said
    assert "replacing" not in said
    assert "Traceback" not in said


def test_a_worker_that_dies_at_the_start_shows_its_last_words(
    settings: Path, tmp_path: Path
) -> None:
    fault = (
        "actors.rollout:RolloutWorker.__init__:"
        "import os, sys; print('no such engine', file=sys.stderr, flush=True); os._exit(9)"
    )
    with scene(settings, tmp_path, "max_restarts=1", fault=fault) as run:
        said = run.ends(4)
    assert said.count("no such engine") >= 2
    assert "replacing it" in said
    assert "Traceback" not in said


def test_a_start_that_takes_too_long_is_an_error_of_ours(settings: Path, tmp_path: Path) -> None:
    fault = "actors.learner:LearnerWorker.__init__:import time; time.sleep(90)"
    with scene(settings, tmp_path, "phase_seconds={start: 40}", fault=fault) as run:
        said = run.ends(4)
    assert "the learner worker 0 did not answer in time: 'start' may take 40 s" in said
    assert (
        "time.sleep" in (run.output / "stacks-start-0.txt").read_text()
        or "<fault>" in (run.output / "stacks-start-0.txt").read_text()
    )
    assert "Traceback" not in said


def test_a_hung_rank_is_noticed_its_stacks_are_kept_and_the_run_goes_on(
    settings: Path, tmp_path: Path
) -> None:
    overrides = ["learner.num_workers=2", "learner.cpus=0.125", "phase_seconds={update: 30}"]
    with scene(settings, tmp_path, *overrides) as run:
        runs.wait_until(lambda: runs.num_rows(run.output) >= 1, run.process)
        processes(run, "ray::LearnerWorker")[1].send_signal(signal.SIGSTOP)
        said = run.ends(0, within=500)
    assert "did not answer in time" in said
    assert said.count("iteration 1/5") == 2  # it was done again
    stacks = next(run.output.glob("stacks-*.txt")).read_text()
    assert stacks.count("== learner worker") == 2
    assert "(stopped)" in stacks
    assert runs.num_rows(run.output) == runs.ITERATIONS


def test_a_killed_rank_of_two_brings_the_group_back_to_its_checkpoint(
    settings: Path, tmp_path: Path
) -> None:
    overrides = ["learner.num_workers=2", "learner.cpus=0.125"]
    with scene(settings, tmp_path, *overrides) as run:
        runs.wait_until(lambda: runs.num_rows(run.output) >= 3, run.process)
        processes(run, "ray::LearnerWorker")[1].kill()
        said = run.ends(0)
    assert "the learner worker" in said
    assert f"resuming at iteration {runs.CHECKPOINT_EVERY}" in said
    assert runs.num_rows(run.output) == runs.ITERATIONS


def test_passes_that_are_too_large_even_then_end_the_run_with_sizes(
    settings: Path, tmp_path: Path
) -> None:
    with scene(settings, tmp_path, fault=NO_MEMORY.format(0)) as run:
        said = run.ends(4)
    assert "4503599627370496 bytes" in said
    assert "error: the learner worker 0 ran out of memory in 'update'" in said
    assert "Traceback" not in said


def test_a_slow_scorer_is_seen_in_the_split_and_no_work_piles_up(
    settings: Path, tmp_path: Path
) -> None:
    fault = "equilibrate.learning.scoring:ScoringWorker.score:import time; time.sleep(6)"
    with scene(settings, tmp_path, "rollout.max_policy_lag=1", fault=fault) as run:
        run.ends(0)
    for row in read_rows(run.output / "timings.jsonl"):
        seconds = row["seconds"]
        assert seconds["score"] > 6
        assert seconds["score"] > seconds["rollout"] + seconds["update"] + seconds["sync"]
    assert runs.num_rows(run.output) == runs.ITERATIONS
