"""Which policies are worth a look when harm must fall and helpfulness must not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]
"""Harm, and a value of which more is better."""


def pareto_front(harm: Sequence[float], helpfulness: Sequence[float]) -> list[int]:
    """Indices that no other point dominates, by rising harm.

    A point dominates another if it is at most as harmful and at least as helpful, and better in one
    of them. Equal points dominate neither and both stay.

    Args: harm, helpfulness: one entry per policy; nan is never on the front.
    Raises: ValueError if the lengths differ.
    """
    if len(harm) != len(helpfulness):
        raise ValueError(f"harm ({len(harm)}) and helpfulness ({len(helpfulness)}) must pair up")
    points = list(zip(harm, helpfulness, strict=True))
    front = [
        i
        for i, (x, y) in enumerate(points)
        if x == x and y == y and not any(a <= x and b >= y and (a < x or b > y) for a, b in points)
    ]
    return sorted(front, key=lambda i: (points[i][0], i))


def hypervolume(
    harm: Sequence[float],
    helpfulness: Sequence[float],
    *,
    reference: tuple[float, float] = (1.0, 0.0),
) -> float:
    """Area that the points dominate, up to the reference: larger is a better set of policies.

    Args:
        harm, helpfulness: one entry per policy; a point with a nan adds nothing.
        reference: (harm, helpfulness) of the worst policy of interest; a point that is not better
            in both adds nothing. The default makes the area of shares lie in [0, 1].
    Returns: harm units times helpfulness units; 0 without points.
    Raises: ValueError if the lengths differ.
    Source: Zitzler and Thiele 1998.
    """
    worst_harm, worst_helpfulness = reference
    inside = [
        (harm[i], helpfulness[i])
        for i in pareto_front(harm, helpfulness)
        if harm[i] < worst_harm and helpfulness[i] > worst_helpfulness
    ]
    # Along the front both rise, so from each point to the next its own helpfulness is the best.
    ends = [*(x for x, _ in inside[1:]), worst_harm]
    return sum(
        ((end - x) * (y - worst_helpfulness) for (x, y), end in zip(inside, ends, strict=False)),
        0.0,
    )


def gap_at_equal_harm(of: Sequence[Point], against: Sequence[Point]) -> float:
    """How much more value one set of policies has than another where both are equally harmful.

    Points of a set are joined by straight lines in order of harm, and the gap is the mean height of
    one line over the other, over the harms that both reach. Unlike the area under a front it does
    not grow by going further along the same line.

    Args: of, against: finite points; of those with equal harm the mean counts.
    Returns: value units; nan if the two have no harm in common.
    Raises: ValueError for a set without points.
    """
    lines = [_line(points) for points in (of, against)]
    low = max(harms[0] for harms, _ in lines)
    high = min(harms[-1] for harms, _ in lines)
    if low > high:
        return math.nan
    # The difference is straight between neighbours of these, so the trapezium is exact.
    inner = [harm for harms, _ in lines for harm in harms if low < harm < high]
    at = np.unique([low, *inner, high])
    first, second = (np.interp(at, *line) for line in lines)
    gaps = first - second
    if low == high:
        return float(gaps[0])
    return float(np.trapezoid(gaps, at) / (high - low))


def _line(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Distinct harms in order, and the mean value at each."""
    if not points:
        raise ValueError("a line needs at least one point")
    values: dict[float, list[float]] = {}
    for harm, value in sorted(points):
        values.setdefault(harm, []).append(value)
    return list(values), [math.fsum(v) / len(v) for v in values.values()]
