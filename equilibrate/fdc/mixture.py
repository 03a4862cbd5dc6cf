"""Shares of the classes, and whole prompts that follow them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equilibrate.errors import DataError
from equilibrate.types import Category


def normalise(mixture: Mapping[Category, float]) -> dict[Category, float]:
    """Shares that sum to 1 from shares, ratios or counts; classes at 0 are left out.

    Raises: DataError if a weight is negative or not finite, or if none is above 0.
    """
    total = sum(mixture.values())
    if not (0 < total < float("inf")) or any(weight < 0 for weight in mixture.values()):
        raise DataError(
            f"fdc.mixture ({ {category.value: weight for category, weight in mixture.items()} }) "
            "must hold finite weights >= 0 with at least one above 0; try {GENERAL: 0.5, EHD: 0.5}"
        )
    return {category: mixture[category] / total for category in Category if mixture.get(category)}


class Apportionment:
    """Hands out one class at a time so that every class stays within 1 of its ideal count.

    With k classes of fixed shares, |handed out - share * total| <= 1 - 1 / (2k - 2) at all times.
    Source: Tijdeman 1980, "The chairman assignment problem". A class that is owed enough may go;
    among those, the one goes that would be overdue first.
    """

    def __init__(self) -> None:
        self._owed: dict[Category, float] = {}

    def next_class(self, shares: Mapping[Category, float]) -> Category:
        """The class of the next prompt. `shares` are positive and sum to 1."""
        for category, share in shares.items():
            self._owed[category] = self._owed.get(category, 0.0) + share
        slack = 1 / max(2 * len(shares) - 2, 1)
        # Sums of shares carry rounding errors of about 1e-16 per prompt.
        ready = [category for category in shares if self._owed[category] >= slack - 1e-9]
        chosen = min(
            ready or shares,
            key=lambda category: (1 - slack - self._owed[category]) / shares[category],
        )
        self._owed[chosen] -= 1
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {category.value: owed for category, owed in self._owed.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._owed = {Category(name): float(owed) for name, owed in state.items()}
