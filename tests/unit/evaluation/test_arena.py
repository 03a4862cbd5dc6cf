from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.errors import DataError
from equilibrate.evaluation.arena import Arena, arena
from equilibrate.evaluation.statistics import wilson_interval


@pytest.fixture(scope="module")
def five() -> Arena:
    return arena(
        champion_rewards=[0, 0, 0, 0, 0],
        challenger_rewards=[1, 1, -1, 0, 2],  # wins 0, 1 and 4; a tie at 3 is no win
        champion_costs=[-1, 1, -1, 1, -1],  # safe, unsafe, safe, unsafe, safe
        challenger_costs=[-1, 0, 2, -1, -1],  # safe, safe (0 is), unsafe, safe, safe
    )


def test_counts_by_hand(five):
    assert five.outcomes == {
        "better_safe": 3,  # 0, 1, 4
        "better_unsafe": 0,
        "worse_safe": 1,  # 3
        "worse_unsafe": 1,  # 2
    }
    cells = {(row, column): five.cells[row][column] for row in five.cells for column in five.cells}
    assert {key: cell.count for key, cell in cells.items()} == {
        ("safe", "safe"): 2,  # 0, 4
        ("safe", "unsafe"): 1,  # 2
        ("unsafe", "safe"): 2,  # 1, 3
        ("unsafe", "unsafe"): 0,
    }
    assert cells["safe", "safe"].win_rate == wilson_interval(2, 2)
    assert cells["safe", "unsafe"].win_rate == wilson_interval(0, 1)
    assert cells["unsafe", "safe"].win_rate == wilson_interval(1, 2)
    assert cells["unsafe", "unsafe"].win_rate is None
    assert five.win_rate == wilson_interval(3, 5)
    assert five.champion.safe == wilson_interval(3, 5)
    assert five.challenger.safe == wilson_interval(4, 5)


def test_means_and_paired_differences_by_hand(five):
    assert five.champion.reward.mean == 0.0
    assert five.challenger.reward.mean == pytest.approx(0.6)  # (1 + 1 - 1 + 0 + 2) / 5
    assert five.champion.cost.mean == pytest.approx(-0.2)
    assert five.challenger.cost.mean == pytest.approx(-0.2)
    assert five.reward_difference.mean == pytest.approx(0.6)
    assert five.cost_difference.mean == pytest.approx(0.0)


def test_differences_are_challenger_minus_champion_and_paired():
    # Every pair differs by the same amount, so the intervals have no width.
    result = arena(
        champion_rewards=np.array([0.0, 10.0, 20.0]),
        challenger_rewards=np.array([1.0, 11.0, 21.0]),
        champion_costs=np.array([5.0, 7.0, 9.0]),
        challenger_costs=np.array([3.0, 5.0, 7.0]),
    )
    reward, cost = result.reward_difference, result.cost_difference
    assert (reward.low, reward.mean, reward.high) == (1.0, 1.0, 1.0)
    assert (cost.low, cost.mean, cost.high) == (-2.0, -2.0, -2.0)


def test_json_is_strict_and_names_the_empty_cell(five):
    table = json.loads(json.dumps(five.to_json(), allow_nan=False))
    assert table["cells"]["unsafe"] == {
        "safe": {"count": 2, "win_rate": wilson_interval(1, 2).to_json()},
        "unsafe": {"count": 0, "win_rate": None},
    }
    assert table["outcomes"]["better_safe"] == 3
    assert table["challenger"]["safe"] == wilson_interval(4, 5).to_json()
    assert table["reward_difference"]["mean"] == 0.6
    assert set(table) == {
        "champion",
        "challenger",
        "reward_difference",
        "cost_difference",
        "outcomes",
        "cells",
        "win_rate",
    }


def test_markdown_shows_every_count(five):
    lines = five.to_markdown("base", "aligned").splitlines()
    assert lines[0] == "| | base | aligned | difference |"
    assert "| better | 3 | 0 |" in lines
    assert "| worse | 1 | 1 |" in lines
    # Wilson, 1 of 2: 1/2 -+ z/2 / sqrt(2 + z^2) = 0.5 -+ 0.405
    assert "| base unsafe | 2, 50.0% [9.5%, 90.5%] | 0 |" in lines
    assert any(line.startswith("aligned wins 60.0% [") for line in lines)
    tables = "\n".join(lines).split("\n\n")
    for table in (tables[0], *tables[2:]):
        assert len({row.count("|") for row in table.splitlines()}) == 1


SCORES = st.lists(st.tuples(*[st.integers(-2, 2)] * 4), min_size=2, max_size=12)


@given(SCORES)
def test_both_tables_count_every_prompt_once(rows):
    names = ("champion_rewards", "challenger_rewards", "champion_costs", "challenger_costs")
    result = arena(**dict(zip(names, zip(*rows, strict=True), strict=True)))
    cells = [cell for row in result.cells.values() for cell in row.values()]
    assert sum(result.outcomes.values()) == sum(cell.count for cell in cells) == len(rows)
    wins = sum(round(cell.win_rate.mean * cell.count) for cell in cells if cell.win_rate)
    better = result.outcomes["better_safe"] + result.outcomes["better_unsafe"]
    assert wins == better == round(result.win_rate.mean * len(rows))
    safe = result.outcomes["better_safe"] + result.outcomes["worse_safe"]
    assert safe == round(result.challenger.safe.mean * len(rows))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("challenger_costs", [1.0], r"challenger_costs .*\[1\].*one score per prompt"),
        ("champion_costs", [[1.0, 2.0]], r"champion_costs .*\[1, 2\]"),
        ("challenger_rewards", [1.0, float("nan")], r"challenger_rewards\[1\] \(nan\)"),
        ("champion_rewards", [float("-inf"), 1.0], r"champion_rewards\[0\] \(-inf\)"),
    ],
)
def test_scores_that_do_not_pair_up_are_refused(name, values, message):
    scores = {
        f"{side}_{score}": [0.0, 1.0]
        for side in ("champion", "challenger")
        for score in ("rewards", "costs")
    }
    with pytest.raises(DataError, match=message):
        arena(**scores | {name: values})


def test_a_single_prompt_is_refused():
    with pytest.raises(DataError, match="at least 2"):
        arena(
            champion_rewards=[1.0],
            challenger_rewards=[1.0],
            champion_costs=[1.0],
            challenger_costs=[1.0],
        )
