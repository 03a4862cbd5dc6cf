"""Numbers that mean nothing: left out, gone back behind, or said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from equilibrate.run.sinks import read_rows
from tests.faults.scenes import Scene, scene
from tests.integration import runs

SCORES = "equilibrate.learning.scoring:ScoringWorker.score:"
PLAIN = "plain = self.__dict__.setdefault('plain', self._reward); import torch; "
BROKEN_REWARD = (
    f"{SCORES}{PLAIN}"
    "self._reward = lambda ids: plain(ids).index_fill(0, torch.tensor([0]), float('nan'))"
)
CONSTANT_REWARD = f"{SCORES}{PLAIN}self._reward = lambda ids: plain(ids) * 0 + 1"


def broken_advantages(times: int) -> str:
    """From iteration 2 on, so many updates long."""
    return (
        "equilibrate.learning.update:Update.run:count = len(list(state.iterdir())); "
        f"bad = self._iteration >= 2 and count < {times}; "
        "bad and ((state / str(count)).touch(), self._train.advantages.fill_(float('nan')))"
    )


def column(run: Scene, name: str) -> list[Any]:
    return [row[name] for row in read_rows(run.output / "metrics.jsonl")]


def test_a_reward_that_is_no_number(tmp_path: Path) -> None:
    settings = runs.write_inputs(tmp_path)
    with scene(settings, tmp_path, fault=BROKEN_REWARD) as run:
        said = run.ends(0)
    assert said.count("the reward model gave") == 1
    assert all(0 < share < 1 for share in column(run, "left_out_fraction"))
    assert not any(column(run, "skipped"))
    assert None not in column(run, "reward")


def test_a_reward_that_is_always_the_same(tmp_path: Path) -> None:
    settings = runs.write_inputs(tmp_path)
    with scene(settings, tmp_path, fault=CONSTANT_REWARD) as run:
        said = run.ends(0)
    assert said.count("the reward model has given all 8 rollouts the same score (1)") == 1
    assert not any(column(run, "reward_std"))


def test_updates_that_break_for_a_while(tmp_path: Path) -> None:
    settings = runs.write_inputs(tmp_path)
    with scene(settings, tmp_path, fault=broken_advantages(3)) as run:
        said = run.ends(0)
    assert "going back to the last checkpoint, once" in said
    assert column(run, "skipped") == [0.0] * runs.ITERATIONS


def test_updates_that_break_for_good(tmp_path: Path) -> None:
    settings = runs.write_inputs(tmp_path)
    with scene(settings, tmp_path, "iterations=9", fault=broken_advantages(99)) as run:
        said = run.ends(5)
    assert "3 updates in a row were skipped" in said
    assert "again after going back to a checkpoint" in said
    assert "Traceback" not in said
    assert len(set(column(run, "multiplier")[-3:])) == 1


def test_a_budget_out_of_reach(tmp_path: Path) -> None:
    settings = runs.write_inputs(tmp_path)
    constraint = ("constraint.budget=-1000", "constraint.max=1", "constraint.init=1")
    with scene(settings, tmp_path, *constraint, "iterations=22", "evaluate_every=0") as run:
        said = run.ends(0)
    sentence = "lambda stood at its cap (1) for"
    assert said.count(sentence) == 1
    assert f"{sentence} 22 iterations in a row" in (run.output / "report.html").read_text()
