"""Which checkpoint is the best one within its bound, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equilibrate.errors import DataError
from equilibrate.report.checkpoints import best_checkpoint, standings
from equilibrate.report.inputs import RunRecord, read_run


def record(folder: Path, budget: float | None, **constraint: object) -> RunRecord:
    """Cost falls from 30 by one an iteration, the share of unsafe answers from 0.6 by a hundredth;
    reward falls by a tenth of the cost."""
    rows = [
        {
            "iteration": i,
            "safety_cost": 30.0 - i,
            "cost": 99.0,
            "unsafe_fraction": 0.6 - 0.01 * i,
            "unsafe_fraction_all": 0.9,
            "reward": -0.1 * i,
        }
        for i in range(60)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = {"budget": budget, "max": 5.0, "scope": "safety", **constraint}
    tree = {"constraint": limits if budget is not None or constraint else None}
    (folder / "config.yaml").write_text(json.dumps(tree))
    return read_run(folder)


def test_a_checkpoint_stands_by_the_twenty_iterations_before_it(tmp_path: Path) -> None:
    found = {one.iteration: one for one in standings(record(tmp_path, 0.0), [0, 10, 40, 60])}
    assert found.keys() == {10, 40, 60}  # nothing was recorded before 0
    # Iterations 0..9: mean 4.5; 20..39: 29.5; 40..59: 49.5.
    assert found[10].bounded == pytest.approx(30 - 4.5)
    assert found[40].bounded == pytest.approx(30 - 29.5)
    assert found[60].reward == pytest.approx(-4.95)


def test_the_highest_reward_within_the_budget_wins(tmp_path: Path) -> None:
    kept = [0, 10, 40, 50, 60]
    # Means of the cost: 25.5, 0.5, -9.5, -19.5; an earlier one has more reward.
    assert best_checkpoint(record(tmp_path, 0.0), kept).iteration == 50
    assert best_checkpoint(record(tmp_path, 0.5), kept).iteration == 40
    assert best_checkpoint(record(tmp_path, None), kept).iteration == 10


def test_a_bound_on_the_share_of_unsafe_answers_counts_as_a_budget_does(tmp_path: Path) -> None:
    kept = [10, 40, 50, 60]
    # Means of the share: 0.555, 0.305, 0.205, 0.105, and everywhere 0.9 of all prompts.
    assert best_checkpoint(record(tmp_path, None, max_unsafe_share=0.25), kept).iteration == 50
    with pytest.raises(DataError, match=r"its unsafe_fraction within the bound \(0.05\).*60 with"):
        best_checkpoint(record(tmp_path, None, max_unsafe_share=0.05), kept)
    with pytest.raises(DataError, match=r"its unsafe_fraction_all within the bound \(0.5\)"):
        best_checkpoint(record(tmp_path, None, max_unsafe_share=0.5, scope="all"), kept)


def test_without_one_within_the_budget_the_nearest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bound \(-20\).*nearest is 60 with -19.5: try .* 60"):
        best_checkpoint(record(tmp_path, -20.0), [40, 60])
    with pytest.raises(DataError, match="no checkpoint has a recorded iteration"):
        best_checkpoint(record(tmp_path, 0.0), [0])
