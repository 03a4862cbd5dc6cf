from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.errors import DataError
from equilibrate.evaluation.statistics import (
    Estimate,
    mean_interval,
    paired_difference,
    student_t_95,
    wilson_interval,
)

Z2 = 1.959963984540054**2  # 3.841459


def test_wilson_by_hand():
    # p = 1/2, n = 4: centre 1/2; half = z/(1 + z^2/4) sqrt(1/16 + z^2/64) = z/2 / sqrt(4 + z^2)
    half = math.sqrt(Z2) / 2 / math.sqrt(4 + Z2)
    figure = wilson_interval(2, 4)
    assert (figure.mean, figure.n) == (0.5, 4)
    assert figure.low == pytest.approx(0.5 - half)
    assert figure.high == pytest.approx(0.5 + half)


def test_wilson_has_width_where_nothing_was_seen():
    # p = 0: high = z^2/n / (1 + z^2/n) = z^2 / (n + z^2)
    figure = wilson_interval(0, 96)
    assert figure.low == 0.0
    assert figure.high == pytest.approx(Z2 / (96 + Z2))
    assert wilson_interval(96, 96).high == 1.0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors(counts):
    successes, n = counts
    figure, mirror = wilson_interval(successes, n), wilson_interval(n - successes, n)
    assert 0 <= figure.low <= figure.mean <= figure.high <= 1
    assert figure.low == pytest.approx(1 - mirror.high)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="must lie in"):
        wilson_interval(successes, n)


@pytest.mark.parametrize(
    # Tabulated two-sided 95 % quantiles of Student's t.
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (30, 2.0423), (120, 1.9799)],
)
def test_student_t(degrees, expected):
    assert student_t_95(degrees) == pytest.approx(expected, abs=2e-4)


def test_mean_interval_by_hand():
    # mean 2, s = 1, n = 3: half = 4.302653 / sqrt(3)
    figure = mean_interval([1.0, 2.0, 3.0])
    assert figure.mean == 2.0
    assert figure.high - figure.mean == pytest.approx(4.302652730 / math.sqrt(3))
    assert figure.mean - figure.low == pytest.approx(4.302652730 / math.sqrt(3))


def test_mean_interval_stays_in_the_range():
    figure = mean_interval([0.0, 1.0], lower=0.0, upper=1.0)  # half = 12.7 * 0.707 / 1.414 > 0.5
    assert (figure.low, figure.mean, figure.high) == (0.0, 0.5, 1.0)
    assert mean_interval([0.3], lower=0.0, upper=1.0) == Estimate(mean=0.3, low=0, high=1, n=1)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_pairing_removes_what_the_prompts_share():
    before = [0.0, 10.0, 20.0, 30.0]
    figure = paired_difference(before, [value + 1 for value in before])
    # Every pair differs by exactly 1, so does every resample.
    assert figure == Estimate(mean=1.0, low=1.0, high=1.0, n=4)
    assert figure.is_significant


def test_paired_difference_without_effect_is_not_significant():
    figure = paired_difference([0.0, 1.0] * 20, [1.0, 0.0] * 20)
    assert figure.mean == 0.0
    assert figure.low < 0 < figure.high
    assert not figure.is_significant


def test_paired_difference_is_deterministic_and_seeded():
    before, after = [0.0, 0.5, 1.0, 0.2, 0.9], [0.7, 0.1, 1.0, 0.3, 0.2]
    assert paired_difference(before, after, seed=1) == paired_difference(before, after, seed=1)
    assert paired_difference(before, after, seed=1) != paired_difference(before, after, seed=2)
    with pytest.raises(ValueError, match="pair up"):
        paired_difference([1.0], [])


def test_estimate_round_trip_and_refusal():
    figure = wilson_interval(1, 3)
    again = Estimate.from_json(figure.to_json())
    assert again.n == 3
    assert again.low == pytest.approx(figure.low, abs=1e-6)
    with pytest.raises(DataError, match="mean, low, high, n"):
        Estimate.from_json({"mean": 1.0})


def test_bootstrap_width_is_that_of_95_percent():
    # Gaps of +1 and -1: s = 1, so half the width is near 1.96 / sqrt(400) = 0.098 (90 %: 0.082).
    figure = paired_difference([0.0] * 400, [1.0, -1.0] * 200)
    assert (figure.high - figure.low) / 2 == pytest.approx(0.098, abs=0.008)
