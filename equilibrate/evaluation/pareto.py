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
