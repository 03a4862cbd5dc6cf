"""How long the rest takes, by hand."""

from __future__ import annotations

import math

import pytest

from equilibrate.study import time_left
from tests.unit.study.studies import plan, result, study

RUNS = plan(study())  # 5 seeds x (2 train + 1 fit)
TRAIN = [run for run in RUNS if run.kind == "train"]
FIT = [run for run in RUNS if run.kind == "fit"]


def finished(runs, seconds):
    return {run.key: result(run, seconds=s) for run, s in zip(runs, seconds, strict=False)}


def test_runs_left_times_their_mean_by_hand():
    """Train: 2 done (100, 120 s), 8 left, s = 14.14, t(1) = 12.706.

    Half width of their sum: 12.706 s sqrt(8 + 64/2) = 1136.4.
    Fit: 3 done (10 s each), 2 left. 8 x 110 + 2 x 10 = 900 s of work on 2 places.
    """
    done = finished(TRAIN, [100.0, 120.0]) | finished(FIT, [10.0] * 3)
    left = time_left(RUNS, done, parallel=2)
    assert left.num_runs == 10
    assert left.seconds == pytest.approx(450.0)
    assert left.high == pytest.approx(450 + 568.2, abs=0.1)
    assert left.low == 0.0  # not less than nothing
    assert left.unknown == ()
    assert str(left) == "about 8 min (0 s to 17 min) for 10 runs"


def test_a_kind_that_never_finished_is_unknown():
    left = time_left(RUNS, finished(TRAIN, [100.0, 120.0]), parallel=1)
    assert left.unknown == ("fit",)
    assert math.isnan(left.seconds)
    assert str(left) == "unknown for 13 runs: no finished fit run yet"


def test_one_run_has_no_spread():
    left = time_left(TRAIN, finished(TRAIN, [7200.0]), parallel=1)
    assert left.seconds == 9 * 7200
    assert math.isnan(left.low)
    assert str(left) == "about 18 h 00 min for 9 runs"


def test_the_last_run_is_not_shared_out():
    left = time_left(TRAIN, finished(TRAIN, [60.0] * 9), parallel=4)
    assert (left.num_runs, left.seconds) == (1, 60.0)
    assert str(left) == "about 60 s (60 s to 60 s) for 1 run"


def test_nothing_is_left():
    left = time_left(TRAIN, finished(TRAIN, [60.0] * 10), parallel=4)
    assert (left.seconds, left.low, left.high) == (0.0, 0.0, 0.0)
    assert str(left) == "no run is left"


def test_there_is_at_least_one_place():
    with pytest.raises(ValueError, match=r"parallel \(0\) must be at least 1"):
        time_left(RUNS, {}, parallel=0)
