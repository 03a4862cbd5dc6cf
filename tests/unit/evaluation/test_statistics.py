from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.errors import DataError
from equilibrate.evaluation.statistics import (
    MIN_CLAIMED,
    Estimate,
    mean_interval,
    paired_difference,
    paired_rate_difference,
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


@pytest.mark.parametrize(
    ("value", "n", "low", "high"),
    [
        # The other values may have had a share q with (1 - q)^n = 0.05: for two 1 - 0.05^(1/2).
        (0.0, 2, 0.0, 0.776393),
        (1.0, 2, 0.223607, 1.0),
        (0.5, 2, 0.5 - 0.776393 / 2, 0.5 + 0.776393 / 2),
        (0.0, 300, 0.0, 0.009936),  # the rule of three: 3 / 300
    ],
)
def test_equal_values_of_a_range_leave_room_for_what_was_not_seen(value, n, low, high):
    figure = mean_interval([value] * n, lower=0.0, upper=1.0)
    assert (figure.mean, figure.n) == (value, n)
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(2, 9), st.floats(0, 1))
def test_equal_values_are_missed_by_5_percent_at_most(n, value):
    # The worst case: of two values, the other end of the range with just too large a share.
    figure = mean_interval([value] * n, lower=0.0, upper=1.0)
    share = (figure.high - value) / (1 - value) if value < 0.5 else (value - figure.low) / value
    assert (1 - share) ** n == pytest.approx(0.05)


def test_equal_values_without_a_range_have_no_width():
    figure = mean_interval([0.1] * 7)
    assert figure.low == figure.mean == figure.high == pytest.approx(0.1)


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
    before = [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    figure = paired_difference(before, [value + 1 for value in before])
    # Every pair differs by exactly 1.
    assert figure == Estimate(mean=1.0, low=1.0, high=1.0, n=6)
    assert figure.is_significant


def test_paired_difference_without_effect_is_not_significant():
    figure = paired_difference([0.0, 1.0] * 20, [1.0, 0.0] * 20)
    assert figure.mean == 0.0
    assert figure.low < 0 < figure.high
    assert not figure.is_significant


def test_paired_difference_by_hand():
    # Gaps 1, 2, 3 as in test_mean_interval_by_hand.
    assert paired_difference([0.0, 1.0, 2.0], [1.0, 3.0, 5.0]) == mean_interval([1.0, 2.0, 3.0])


@pytest.mark.parametrize("function", [paired_difference, paired_rate_difference])
def test_pairs_must_pair_up(function):
    with pytest.raises(ValueError, match="pair up"):
        function([1.0], [])
    with pytest.raises(ValueError, match="not be empty"):
        function([], [])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_pairs_are_never_called_significant(n):
    """Five coins fall alike once in 16 throws of five: that is no 5 %."""
    assert not paired_rate_difference([1.0] * n, [0.0] * n).is_significant
    assert not paired_difference([1.0] * n, [0.0] * n).is_significant
    assert paired_rate_difference([1.0] * MIN_CLAIMED, [0.0] * MIN_CLAIMED).is_significant


def test_paired_rate_difference_by_hand():
    # 3 up, 1 down, 4 alike: p+ = 4/10, p- = 2/10, d = 0.2; variance (0.6 - 0.04) / 10
    before = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    after = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    figure, half = paired_rate_difference(before, after), math.sqrt(Z2 * 0.056)
    assert (figure.mean, figure.n) == (0.25, 8)
    assert (figure.low, figure.high) == pytest.approx((0.2 - half, 0.2 + half))


@given(st.lists(st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)]), min_size=1, max_size=40))
def test_paired_rate_difference_holds_what_was_seen_and_mirrors(pairs):
    before, after = zip(*pairs, strict=True)
    figure, mirror = paired_rate_difference(before, after), paired_rate_difference(after, before)
    assert -1 <= figure.low <= figure.mean <= figure.high <= 1
    assert (figure.low, figure.high) == pytest.approx((-mirror.high, -mirror.low))


COVERAGE, DRAWS = 0.93, 2000
"""Wanted share of intervals that hold the truth; its own error is 0.005."""


@pytest.mark.parametrize("n", [2, 5, 20])
def test_paired_differences_hold_the_truth_as_often_as_they_say(n):
    rng = np.random.default_rng(0)
    before = rng.normal(0.0, 3.0, (DRAWS, n))
    after = before + rng.normal(0.4, 1.0, (DRAWS, n))
    figures = [paired_difference(*both) for both in zip(before, after, strict=True)]
    assert np.mean([figure.low <= 0.4 <= figure.high for figure in figures]) >= COVERAGE


@pytest.mark.parametrize("n", [2, 5, 20])
@pytest.mark.parametrize(("p_up", "p_down"), [(0.0, 0.05), (0.05, 0.05), (0.1, 0.3), (0.0, 0.9)])
def test_rate_differences_hold_the_truth_as_often_as_they_say(n, p_up, p_down):
    draws = np.random.default_rng(0).random((DRAWS, n))
    ups, downs = draws < p_up, draws > 1 - p_down
    figures = [paired_rate_difference(1.0 * d, 1.0 * u) for d, u in zip(downs, ups, strict=True)]
    held = [figure.low <= p_up - p_down <= figure.high for figure in figures]
    assert np.mean(held) >= COVERAGE


def test_estimate_round_trip_and_refusal():
    figure = wilson_interval(1, 3)
    again = Estimate.from_json(figure.to_json())
    assert again.n == 3
    assert again.low == pytest.approx(figure.low, abs=1e-6)
    with pytest.raises(DataError, match="mean, low, high, n"):
        Estimate.from_json({"mean": 1.0})
