from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.evaluation.pareto import gap_at_equal_harm, hypervolume, pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8)


def test_front_by_hand():
    # (.9,.9) base; (.5,.95) beats it; (.5,.8) loses to the second; (.1,.7) is the safest
    assert pareto_front([0.9, 0.5, 0.5, 0.1], [0.9, 0.95, 0.8, 0.7]) == [3, 1]


def test_equal_points_stay_and_nan_goes():
    assert pareto_front([0.5, 0.5, math.nan], [0.5, 0.5, 1.0]) == [0, 1]
    assert pareto_front([], []) == []
    with pytest.raises(ValueError, match="pair up"):
        pareto_front([0.1], [])


@given(POINTS)
def test_along_the_front_helpfulness_is_paid_for_with_harm(points):
    front = pareto_front([p[0] for p in points], [p[1] for p in points])
    on_front = [points[i] for i in front]
    assert on_front == sorted(on_front)
    assert [p[1] for p in on_front] == sorted(p[1] for p in on_front)
    # Whoever is off the front is beaten by somebody on it.
    for x, y in points:
        assert any(a <= x and b >= y for a, b in on_front)


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(0.5, 0.8)], 0.4),
        ([(0.5, 0.8), (0.1, 0.2)], 0.48),  # 0.4, and 0.4 x 0.2 to the left of it
        ([(0.5, 0.8), (0.6, 0.7)], 0.4),  # dominated
        ([(0.5, 0.8), (0.5, 0.8)], 0.4),  # twice the same
        ([(0.5, 0.8), (math.nan, 1.0), (0.0, math.nan)], 0.4),
        ([(1.0, 1.0), (1.5, 2.0), (0.0, 0.0), (0.2, -1.0)], 0.0),  # on the reference or beyond
        ([(0.0, 1.0)], 1.0),
    ],
)
def test_hypervolume_by_hand(points, area):
    assert hypervolume([p[0] for p in points], [p[1] for p in points]) == pytest.approx(area)


def test_hypervolume_up_to_another_reference():
    # (3 - 1) x (2 - -1)
    assert hypervolume([1.0], [2.0], reference=(3.0, -1.0)) == pytest.approx(6.0)
    with pytest.raises(ValueError, match="pair up"):
        hypervolume([0.1], [])


def volume(points) -> float:
    """Up to (3, 1) on the grid of 0 to 4: some points lie beyond."""
    return hypervolume([p[0] for p in points], [p[1] for p in points], reference=(3, 1))


@given(POINTS)
def test_hypervolume_counts_the_unit_squares_that_some_point_dominates(points):
    squares = sum(
        any(x <= left and y >= bottom + 1 for x, y in points)
        for left in range(3)
        for bottom in range(1, 4)
    )
    assert volume(points) == squares


@given(POINTS, st.tuples(st.integers(0, 4), st.integers(0, 4)), st.randoms())
def test_hypervolume_grows_with_points_whatever_their_order(points, one_more, random):
    shuffled = random.sample(points, len(points))
    assert volume(shuffled) == volume(points)
    assert volume([*points, one_more]) >= volume(points)


@pytest.mark.parametrize(
    ("of", "against", "gap"),
    [
        # Both from .4 to .6; there .7 to .9 against .6 to .7: gaps .1 and .2.
        ([(0.2, 0.5), (0.6, 0.9)], [(0.8, 0.8), (0.4, 0.6)], 0.15),
        # A triangle of height 1 over the axis, in any order.
        ([(1.0, 0.0), (0.0, 0.0), (0.5, 1.0)], [(0.0, 0.0), (1.0, 0.0)], 0.5),
        # One line, though the first goes further on it both ways.
        ([(0.1, 0.1), (0.9, 0.9)], [(0.3, 0.3), (0.5, 0.5)], 0.0),
        ([(0.2, 0.5), (0.4, 0.7)], [(0.4, 0.6), (0.8, 0.9)], 0.1),  # one harm in common
        ([(0.5, 0.4), (0.5, 0.8)], [(0.0, 0.0), (1.0, 1.0)], 0.1),  # of equal harms the mean
        ([(0.5, 0.8)], [(0.0, 0.0), (1.0, 1.0)], 0.3),  # a point against a line
    ],
)
def test_gap_at_equal_harm_by_hand(of, against, gap):
    assert gap_at_equal_harm(of, against) == pytest.approx(gap)
    assert gap_at_equal_harm(against, of) == pytest.approx(-gap)


def test_without_a_harm_in_common_there_is_no_gap():
    assert math.isnan(gap_at_equal_harm([(0.1, 0.5), (0.2, 0.6)], [(0.3, 0.5), (0.4, 0.6)]))
    with pytest.raises(ValueError, match="at least one point"):
        gap_at_equal_harm([], [(0.3, 0.5)])


def test_going_further_has_more_area_but_no_height():
    line = [(0.2, 0.2), (0.5, 0.5)]
    further = [(0.1, 0.1), *line]
    areas = [hypervolume([x for x, _ in side], [y for _, y in side]) for side in (line, further)]
    assert areas == pytest.approx([0.3 * 0.2 + 0.5 * 0.5, 0.1 * 0.1 + 0.3 * 0.2 + 0.5 * 0.5])
    assert gap_at_equal_harm(further, line) == pytest.approx(0.0)
