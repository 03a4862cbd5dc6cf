from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.evaluation.pareto import pareto_front

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
