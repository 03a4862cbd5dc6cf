"""Kills and stops at moments of every kind, after which the same command ends in the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equilibrate.run.sinks import read_rows
from tests.faults.scenes import scene
from tests.integration import runs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_fit_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def settings(inputs: Path) -> Path:
    return inputs.with_name("run.yaml")


def metrics(output: Path) -> bytes:
    return (output / "metrics.jsonl").read_bytes()


def test_killed_workers_change_no_number(settings: Path, tmp_path: Path) -> None:
    straight, output = tmp_path / "straight", tmp_path / "workers"
    assert runs.finish(runs.start(settings, straight)) == 0
    run = runs.start(settings, output)
    for rows, worker in ((1, "RolloutWorker"), (2, "ScoringWorker"), (3, "LearnerWorker")):
        runs.wait_until(lambda rows=rows: runs.num_rows(output) >= rows, run)
        runs.worker_of(run, worker).kill()
    assert runs.finish(run) == 0, output.with_suffix(".log").read_text()
    assert metrics(output) == metrics(straight)
    log = output.with_suffix(".log").read_text()
    assert "replacing it" in log
    assert f"resuming at iteration {runs.CHECKPOINT_EVERY}" in log


def test_no_death_changes_a_number_where_sampling_runs_ahead(
    settings: Path, tmp_path: Path
) -> None:
    lag, straight, broken = "rollout.max_policy_lag=1", tmp_path / "straight", tmp_path / "broken"
    assert runs.finish(runs.start(settings, straight, lag)) == 0
    rows = read_rows(straight / "metrics.jsonl")
    assert [row["policy_lag"] for row in rows] == [0.0] + [1.0] * (runs.ITERATIONS - 1)
    assert all(row["mismatch_kl"] > 0 for row in rows[1:])
    first = runs.start(settings, broken, lag)
    runs.wait_until(lambda: runs.num_rows(broken) >= 1, first)
    runs.worker_of(first, "RolloutWorker").kill()
    runs.wait_until(lambda: runs.num_rows(broken) >= runs.CHECKPOINT_EVERY + 1, first)
    first.kill()
    first.wait()
    assert runs.finish(runs.start(settings, broken, lag)) == 0
    assert metrics(broken) == metrics(straight)


def test_a_training_that_is_told_to_stop_goes_on_later(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "stopped"
    arguments = ["--config", str(inputs), f"output={output}", "steps=200"]
    run = runs.command("fit", *arguments, log=output)
    runs.wait_until((output / "training" / "checkpoints" / "LATEST").exists, run)
    run.terminate()
    assert runs.finish(run) == 143
    log = output.with_suffix(".log").read_text()
    assert "stopped; the same command goes on from the last checkpoint" in log
    assert "Traceback" not in log
    assert runs.finish(runs.command("fit", *arguments, log=output)) == 0
    assert json.loads((output / "training.json").read_text())["num_steps"] == 200


def test_a_killed_training_of_a_cost_model_ends_in_the_same_bytes(
    inputs: Path, tmp_path: Path
) -> None:
    runs.write_scorer_pairs(tmp_path)
    policy, straight, killed = inputs.parent / "policy", tmp_path / "straight", tmp_path / "killed"
    assert runs.finish(runs.fit_scorer("cost", policy, tmp_path, straight)) == 0
    run = runs.fit_scorer("cost", policy, tmp_path, killed)
    runs.wait_until((killed / "training" / "checkpoints" / "LATEST").exists, run)
    run.kill()
    run.wait()
    assert not (killed / "cost").exists()
    assert runs.finish(runs.fit_scorer("cost", policy, tmp_path, killed)) == 0
    for file in ("cost/model.safetensors", "cost/equilibrate_score.json", "training.json"):
        assert (killed / file).read_bytes() == (straight / file).read_bytes()


FULL = (
    "equilibrate.run.checkpoint:CheckpointStore._seal:"
    "n = len(list(state.iterdir())); (state / str(n)).touch(); "
    "open('/dev/full', 'wb', 0).write(b'x') if n in {} else None"
)
"""By the number of the save; the first is that of iteration 0."""


def test_a_disk_that_is_full_for_a_while_costs_no_iteration(settings: Path, tmp_path: Path) -> None:
    with scene(settings, tmp_path, fault=FULL.format((1, 2))) as run:
        said = run.ends(0)
    assert said.count("No space left on device); free space or give another output; the run g") == 2
    assert runs.num_rows(run.output) == runs.ITERATIONS
    assert "Traceback" not in said


def test_a_disk_that_stays_full_ends_the_run_with_its_last_checkpoint(
    settings: Path, tmp_path: Path
) -> None:
    more = ("iterations=9", "checkpoint_every=2")
    with scene(settings, tmp_path, *more, fault=FULL.format((2, 3, 4))) as run:
        said = run.ends(4)
    assert said.count("the run goes on") == 2
    assert (run.output / "checkpoints/LATEST").read_text() == "iteration-2"
    assert "Traceback" not in said
