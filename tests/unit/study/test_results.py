"""Results find their arms, and what has none is missing."""

from __future__ import annotations

import pytest

from equilibrate.study import missing_runs, results_by_arm
from tests.unit.study.studies import HARMS, plan, result, results, study

MADE = result(plan(study())[0], harm=0.25)


def test_results_find_their_arms():
    config = study(seeds=[0, 1])
    made = results(config, {"few": [0.3, 0.4], "many": [0.2]})
    by_arm = results_by_arm(plan(config), {**made, "of another study": MADE})
    assert {arm: list(seeds) for arm, seeds in by_arm.items()} == {
        "few": [0, 1],
        "many": [0],
        "offline": [],
    }
    assert by_arm["few"][1].aligned.mean_harm == pytest.approx(0.4)


def test_arms_that_share_a_run_share_its_result():
    arms = {"one": {"kind": "train"}, "two": {"kind": "train", "set": {"rows": 50}}}
    config = study(arms=arms, questions=[], seeds=[0])
    by_arm = results_by_arm(plan(config), results(config, {"one": [0.3]}))
    assert by_arm["one"] == by_arm["two"]
    assert list(by_arm["two"]) == [0]


def test_missing_runs_keep_their_order():
    config = study()
    missing = missing_runs(plan(config), results(config, HARMS))
    assert [(run.arms, run.seed) for run in missing] == [(("offline",), 3), (("offline",), 4)]
