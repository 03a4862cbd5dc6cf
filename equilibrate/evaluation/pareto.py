"""Which policies are worth a look when harm must fall and helpfulness must not."""

from __future__ import annotations

from collections.abc import Sequence


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
