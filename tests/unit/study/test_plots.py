from __future__ import annotations

from math import nan

from hypothesis import given
from hypothesis import strategies as st

from equilibrate.study.plots import place_labels

CORNERS = [(0.0, 0.0), (1.0, 1.0)]


def test_a_name_with_room_stands_above_its_point() -> None:
    assert place_labels([(0.3, 0.5), (0.7, 0.5)], ["one", "two"], CORNERS) == ["top center"] * 2


def test_a_name_gives_way_to_an_earlier_one() -> None:
    # 1 % of 810 pixels apart: side by side neither has room above, one above and one below have.
    places = place_labels([(0.50, 0.5), (0.51, 0.5)], ["PPO-Lag", "APPO-Lag"], CORNERS)
    assert places == ["top center", "bottom center"]


def test_a_name_does_not_leave_the_plot() -> None:
    long = "x" * 30
    # 198 pixels wide, 45 from the edge.
    assert place_labels(CORNERS, [long, long]) == ["middle right", "middle left"]


def test_a_crowd_leaves_names_out() -> None:
    crowd = [(0.5, 0.5)] * 9
    places = place_labels(crowd, ["a name of some length"] * 9, CORNERS)
    assert places.count(None) > 0
    named = [place for place in places if place]
    assert len(set(named)) == len(named) >= 4


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=12))
def test_every_point_has_an_answer(points: list[tuple[float, float]]) -> None:
    assert len(place_labels(points, ["name"] * len(points))) == len(points)


def test_a_point_that_is_not_measured_takes_no_room_and_no_name() -> None:
    points = [(nan, 0.5), (0.50, 0.5), (0.51, nan), (0.51, 0.5)]
    places = place_labels(points, ["PPO-Lag"] * 4, CORNERS)
    assert places == [None, "top center", None, "bottom center"]
    assert place_labels([(nan, nan)], ["one"]) == [None]


def test_one_point_alone_is_named() -> None:
    assert place_labels([(0.2, 0.2)], ["alone"]) == ["top center"]
