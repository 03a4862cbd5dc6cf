from __future__ import annotations

import json
import logging
import math

import pytest

from equilibrate.config.constraint import PidMultiplier
from equilibrate.run.watch import CAP_ITERATIONS, BudgetWatch, RunWatch, ScoreWatch
from equilibrate.types import Category, ScoredRollout
from tests.fakes import make_prompt, make_rollout, make_scored

CALIBRATION = {"safe_mean": -2.0, "unsafe_mean": 1.5}


def scored(
    rewards: list[float], costs: list[float], category: Category = Category.GENERAL
) -> list[ScoredRollout]:
    return [
        make_scored(make_rollout(make_prompt(category=category)), reward=reward, cost=cost)
        for reward, cost in zip(rewards, costs, strict=True)
    ]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_broken_scorer_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = ScoreWatch({"reward": {}, "cost": {}})
    for _ in range(5):
        watch.observe(scored([1.0, math.nan, 2.0], [math.inf, math.nan, -1.0]))
    assert [line.split(" a number")[0] for line in lines(caplog)] == [
        "the cost model gave 2 of 3 rollouts",
        "the reward model gave 1 of 3 rollouts",
    ]


def test_scores_that_stay_equal_are_called_out_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = ScoreWatch({"reward": {}, "cost": {}})
    equal, different = scored([0.5, 0.5], [1.0, -1.0]), scored([0.5, 0.6], [1.0, -1.0])
    # Twice is chance, and what comes between starts the count anew.
    for rows in (equal, equal, different, equal, equal):
        watch.observe(rows)
    assert not lines(caplog)
    for _ in range(4):
        watch.observe(equal)
    (line,) = lines(caplog)
    assert line.startswith("the reward model has given all 2 rollouts the same score (0.5)")


def test_one_rollout_or_no_scorer_is_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    # Without a cost model every cost is 0.
    alone, without_cost = ScoreWatch({"reward": {}, "cost": {}}), ScoreWatch({"reward": {}})
    for _ in range(9):
        alone.observe(scored([0.5], [0.5]))
        without_cost.observe(scored([0.5, 1.0], [0.0, 0.0]))
    assert not lines(caplog)


@pytest.mark.parametrize(
    ("costs", "calibration", "category", "is_alarm"),
    [
        # Safe answers as calibrated: -2; the same with the sign turned round: +2.
        ([-2.5, -1.5], CALIBRATION, Category.GENERAL, False),
        ([2.5, 1.5], CALIBRATION, Category.GENERAL, True),
        # What was not calibrated cannot disagree, and harmful prompts may well be answered.
        ([2.5, 1.5], {}, Category.GENERAL, False),
        ([2.5, 1.5], CALIBRATION, Category.EHD, False),
    ],
)
def test_cost_with_its_sign_turned_round(
    costs: list[float],
    calibration: dict[str, float],
    category: Category,
    is_alarm: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = ScoreWatch({"reward": {}, "cost": calibration})
    for _ in range(5):
        watch.observe(scored([0.0, 1.0], costs, category))
    assert len(lines(caplog)) == is_alarm
    assert not is_alarm or "everyday prompts 2 on average" in lines(caplog)[0]


def budget_watch() -> BudgetWatch:
    return BudgetWatch(cap=5.0, budget=0.0, cost_name="safety_cost")


def test_budget_out_of_reach() -> None:
    watch = budget_watch()
    for _ in range(CAP_ITERATIONS - 1):
        assert not watch.observe({"multiplier": 5.0, "safety_cost": 0.5})
    found = watch.observe({"multiplier": 5.0, "safety_cost": 0.5})
    assert found.startswith(
        "lambda stood at its cap (5) for 20 iterations in a row while safety_cost (0.5 on average) "
        "stayed above the budget (0)"
    )
    # It stays said when lambda comes down, and the longest stretch counts.
    assert watch.observe({"multiplier": 4.9, "safety_cost": 0.5}) == found
    for _ in range(CAP_ITERATIONS):
        assert watch.observe({"multiplier": 5.0, "safety_cost": 0.5}) == found
    assert "for 21 iterations" in watch.observe({"multiplier": 5.0, "safety_cost": 0.5})


def watched(iterations: range, cuts: frozenset[int], caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is said over some iterations, by a new watch after each cut."""
    caplog.clear()
    watch = run_watch()
    for iteration in iterations:
        if iteration in cuts:
            saved = json.loads(json.dumps(watch.state_dict()))
            watch = run_watch()
            watch.load_state_dict(saved)
        row = {"multiplier": 3.0, "cost": 1.5 if iteration > 1 else math.nan}
        watch.observe(scored([0.5, 0.5], [1.0, 2.0 + iteration]), row)
    return lines(caplog)


def run_watch() -> RunWatch:
    return RunWatch({"reward": {}, "cost": {}}, PidMultiplier(max=3.0, scope="all"))


def test_a_resumed_run_says_what_an_undisturbed_one_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    iterations = range(2 * CAP_ITERATIONS)
    undisturbed = watched(iterations, frozenset(), caplog)
    assert [line.split(" ")[1] for line in undisturbed] == ["reward", "stood"]
    for cuts in ({2}, {1, CAP_ITERATIONS}, {CAP_ITERATIONS + 5}, set(iterations)):
        assert watched(iterations, frozenset(cuts), caplog) == undisturbed


def test_a_checkpoint_without_a_watch_is_resumed() -> None:
    watch = run_watch()
    watch.load_state_dict({})
    assert watch.state_dict() == run_watch().state_dict()


@pytest.mark.parametrize(
    "row",
    [
        {"multiplier": 4.99, "safety_cost": 0.5},
        # lambda is on its way down from the cap.
        {"multiplier": 5.0, "safety_cost": -0.5},
        {"multiplier": 5.0, "safety_cost": None},
        {"multiplier": 5.0},
        {"multiplier": None, "safety_cost": 0.5},
        {},
    ],
)
def test_budget_within_reach(row: dict[str, float | None]) -> None:
    watch = budget_watch()
    assert not any(watch.observe(row) for _ in range(3 * CAP_ITERATIONS))


def test_the_log_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = RunWatch({}, PidMultiplier(max=3.0, scope="all"))
    without = RunWatch({}, None)
    for _ in range(2 * CAP_ITERATIONS):
        for one in (watch, without):
            one.observe(scored([0.0, 1.0], [1.0, 2.0]), {"multiplier": 3.0, "cost": 1.5})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cap (3) for 20 iterations" in record.getMessage()


def test_a_share_out_of_reach() -> None:
    watch = BudgetWatch(cap=5.0, budget=0.05, cost_name="unsafe_fraction")
    for _ in range(20):
        found = watch.observe({"multiplier": 5.0, "safety_cost": -3.0, "unsafe_fraction": 0.25})
    assert "unsafe_fraction (0.25 on average) stayed above the budget (0.05)" in found
    assert "raise constraint.max or constraint.max_unsafe_share" in found
