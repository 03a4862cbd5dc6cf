"""Which checkpoint is the best one within its budget, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equilibrate.errors import DataError
from equilibrate.report.checkpoints import best_checkpoint, standings
from equilibrate.report.inputs import RunRecord, read_run


def record(folder: Path, budget: float | None) -> RunRecord:
    """Cost falls from 30 by one an iteration; reward falls by a tenth of that."""
    rows = [
        {"iteration": i, "safety_cost": 30.0 - i, "cost": 99.0, "reward": -0.1 * i}
        for i in range(60)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = "off" if budget is None else {"budget": budget, "max": 5.0, "scope": "safety"}
    tree = {"constraint": None if budget is None else limits}
    (folder / "config.yaml").write_text(json.dumps(tree))
    return read_run(folder)


def test_a_checkpoint_stands_by_the_twenty_iterations_before_it(tmp_path: Path) -> None:
    found = {one.iteration: one for one in standings(record(tmp_path, 0.0), [0, 10, 40, 60])}
    assert found.keys() == {10, 40, 60}  # nothing was recorded before 0
    # Iterations 0..9: mean 4.5; 20..39: 29.5; 40..59: 49.5.
    assert found[10].cost == pytest.approx(30 - 4.5)
    assert found[40].cost == pytest.approx(30 - 29.5)
    assert found[60].reward == pytest.approx(-4.95)


def test_the_highest_reward_within_the_budget_wins(tmp_path: Path) -> None:
    kept = [0, 10, 40, 50, 60]
    # Means of the cost: 25.5, 0.5, -9.5, -19.5; an earlier one has more reward.
    assert best_checkpoint(record(tmp_path, 0.0), kept).iteration == 50
    assert best_checkpoint(record(tmp_path, 0.5), kept).iteration == 40
    assert best_checkpoint(record(tmp_path, None), kept).iteration == 10


def test_without_one_within_the_budget_the_nearest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"budget \(-20\).*nearest is 60 with -19.5: try .* 60"):
        best_checkpoint(record(tmp_path, -20.0), [40, 60])
    with pytest.raises(DataError, match="no checkpoint has a recorded iteration"):
        best_checkpoint(record(tmp_path, 0.0), [0])
