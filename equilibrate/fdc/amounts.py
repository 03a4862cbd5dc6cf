"""How many examples of each class are learned from: so many, chosen by the seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from equilibrate.errors import DataError
from equilibrate.types import Category


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
    for category, amount in amounts.items():
        rows = [row for row, found in enumerate(categories) if found is category]
        if len(rows) < amount and (when_short == "error" or not rows):
            raise DataError(
                f"fdc.amounts: {category.value} ({amount}) must be at most the {len(rows)} "
                "examples there are; lower it, or set fdc.when_short to oversample"
            )
        random.Random(f"{seed}/{category.value}").shuffle(rows)
        chosen += [rows[i % len(rows)] for i in range(amount)]
    return chosen
