"""How far two labellers agree, how far labels can be learned at all, and intervals of both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass


def kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Cohen's kappa of two labellings of the same rows, as `beyond_chance`; nan without rows.

    Raises: ValueError if the lengths differ.
    """
    pairs = list(zip(first, second, strict=True))
    if not pairs:
        return math.nan
    agreed = sum(a == b for a, b in pairs) / len(pairs)
    return beyond_chance(agreed, chance_agreement(Counter(first), Counter(second)))


def beyond_chance(agreed: float, chance: float) -> float:
    """(p - c) / (1 - c): 1 the same, 0 as chance would have it.

    nan where chance alone agrees always, as of two who give one and the same class to every row:
    nothing was there to agree on.
    Source: Cohen 1960.
    """
    return math.nan if chance == 1 else (agreed - chance) / (1 - chance)


def chance_agreement(first: Mapping[Hashable, int], second: Mapping[Hashable, int]) -> float:
    """Share in which two agree who keep their own counts of the classes and draw."""
    both = sum(count * second.get(key, 0) for key, count in first.items())
    return both / (sum(first.values()) * sum(second.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What labels that repeat with a given agreement allow."""

    accuracy: tuple[float, float]
    """Bounds of who knows the likeliest label of every prompt, whatever the noise looks like."""
    best_f1: float
    """Macro-F1 of who knows the true class of every prompt."""
    second_opinion_f1: float
    """Macro-F1 of another labelling of the same kind against this one."""


def noise_ceiling(shares: Mapping[str, float], agreement: float, scored: Sequence[str]) -> Ceiling:
    """From the agreement of two labels of one prompt to the best score against such labels.

    Bounds: with p the chances of the labels of a prompt, the agreement is the mean of s = sum p^2
    and the best accuracy the mean of max p, and s <= max p <= sqrt(s). For macro-F1 a form of the
    noise is assumed: a label is the true class with chance q, else it is drawn by the shares. Then
    two labels agree with chance q^2 + (1 - q^2) sum share^2, and who knows the true class has
    precision = recall = q + (1 - q) share of each class, another labeller q^2 + (1 - q^2) share.

    Args:
        shares: of all labels; they sum to 1.
        agreement: share of pairs of labels of one prompt that are equal.
        scored: the classes that macro-F1 is over.
    Raises: ValueError if the agreement is below what drawing by the shares gives, or above 1.
    """
    by_chance = sum(share * share for share in shares.values())
    if not by_chance <= agreement <= 1:
        raise ValueError(f"agreement ({agreement:g}) must be in [{by_chance:.3g}, 1]")
    true_twice = 1.0 if by_chance >= 1 else (agreement - by_chance) / (1 - by_chance)
    true = math.sqrt(true_twice)
    return Ceiling(
        accuracy=(agreement, math.sqrt(agreement)),
        best_f1=sum(true + (1 - true) * shares[c] for c in scored) / len(scored),
        second_opinion_f1=sum(true_twice + (1 - true_twice) * shares[c] for c in scored)
        / len(scored),
    )
