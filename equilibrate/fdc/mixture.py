"""Shares of the classes and whole prompts that follow them; or so many examples of each class."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

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


Key = TypeVar("Key", bound=Hashable)


class Apportionment(Generic[Key]):
    """Hands out one class (or file) at a time so that each stays within 1 of its ideal count.

    With k classes of fixed shares, |handed out - share * total| <= 1 - 1 / (2k - 2) at all times.
    Source: Tijdeman 1980, "The chairman assignment problem". A class that is owed enough may go;
    among those, the one goes that would be overdue first.
    """

    def __init__(self) -> None:
        self._owed: dict[Key, float] = {}

    def next_class(self, shares: Mapping[Key, float]) -> Key:
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

    def next_counts(self, shares: Mapping[Key, float], count: int) -> dict[Key, int]:
        """How many of each class the next `count` prompts are."""
        counts = dict.fromkeys(shares, 0)
        for _ in range(count):
            counts[self.next_class(shares)] += 1
        return counts

    def state_dict(self) -> dict[str, Any]:
        return {str(category): owed for category, owed in self._owed.items()}

    def load_state_dict(self, state: Mapping[str, Any], key: Callable[[str], Key]) -> None:
        """Args: key: the class of its name."""
        self._owed = {key(name): float(owed) for name, owed in state.items()}


def choose_amounts(
    categories: Sequence[Category],
    amounts: Mapping[Category, int],
    *,
    when_short: Literal["error", "oversample"],
    seed: int,
) -> list[int]:
    """Numbers of the chosen examples, class by class.

    A smaller amount of the same seed is a part of a larger one, so that a sweep over amounts adds
    examples and does not exchange them.

    Args:
        categories: class of every example there is.
        amounts: wanted examples of each class; a class that is not named gives none. Empty: all.
        when_short: a class with too few examples is an error, or is gone through again.
    Raises: DataError naming the class, what is wanted and what there is.
    Source: the amounts 10k / 3k / 1k of Equilibrate RLHF (arXiv 2502.11555).
    """
    if not amounts:
        return list(range(len(categories)))
    chosen: list[int] = []
    # In the order of the classes, not of the settings: one key, one result.
    for category in (category for category in Category if category in amounts):
        amount = amounts[category]
        rows = [row for row, found in enumerate(categories) if found is category]
        if len(rows) < amount and (when_short == "error" or not rows):
            raise DataError(
                f"fdc.amounts: {category.value} ({amount}) must be at most the {len(rows)} "
                "examples there are; lower it, or set fdc.when_short to oversample"
            )
        random.Random(f"{seed}/{category.value}").shuffle(rows)
        chosen += [rows[i % len(rows)] for i in range(amount)]
    return chosen
