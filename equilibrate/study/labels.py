"""Where the names of points stand in a plot, so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, right, bottom, top, in pixels."""

PLOT = (900.0, 320.0)
"""Width and height of the drawing area, in pixels, about: the page scales with its window."""
CHARACTER_WIDTH = 6.6
"""Of the page's font at 12 pixels, on average."""
CHARACTER_HEIGHT = 12.0
MARKER = 12.0
REACH = 7.0
"""From the middle of a marker to the name beside it."""
PLACES = {
    "top center": (0, 1),
    "bottom center": (0, -1),
    "middle right": (1, 0),
    "middle left": (-1, 0),
    "top right": (1, 1),
    "top left": (-1, 1),
    "bottom right": (1, -1),
    "bottom left": (-1, -1),
}
"""Plotly's words, best first, and the direction from the point."""


def place_labels(
    points: Sequence[Point], names: Sequence[str], around: Sequence[Point] = ()
) -> list[str | None]:
    """For each point the place of its name; None where any place would cover something.

    Args:
        points: to be named; earlier ones choose first. One that is not finite is not in the plot.
        around: other points of the plot: they span its axes, and may be covered.
    """
    spots = _in_pixels(points, [p for p in (*points, *around) if all(map(isfinite, p))])
    taken = [_box(x, y, MARKER, MARKER) for x, y in spots]
    return [_choose(spot, name, taken) for spot, name in zip(spots, names, strict=True)]


def _choose(spot: Point, name: str, taken: list[Box]) -> str | None:
    """The first place with room, which is taken from then on."""
    if not all(map(isfinite, spot)):
        return None
    width, height = CHARACTER_WIDTH * len(name), CHARACTER_HEIGHT
    for place, (right, up) in PLACES.items():
        x = spot[0] + right * (width / 2 + REACH)
        box = _box(x, spot[1] + up * (height / 2 + REACH), width, height)
        inside = box[0] >= 0 and box[1] <= PLOT[0]
        if inside and not any(_cover(box, other) for other in taken):
            taken.append(box)
            return place
    return None


def _in_pixels(points: Sequence[Point], all_points: Sequence[Point]) -> list[Point]:
    if not all_points:
        return [(nan, nan)] * len(points)
    columns = []
    for axis, length in enumerate(PLOT):
        low = min(point[axis] for point in all_points)
        # All at one place: any scale will do.
        span = max(point[axis] for point in all_points) - low or 1.0
        # Plotly leaves a margin of about a twentieth on each side.
        columns.append([((p[axis] - low) / span * 0.9 + 0.05) * length for p in points])
    return list(zip(*columns, strict=True))


def _box(x: float, y: float, width: float, height: float) -> Box:
    return (x - width / 2, x + width / 2, y - height / 2, y + height / 2)


def _cover(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
