"""`fdc audit`: how the classes of a file stand, what a run says of each, and how many would do.

`fdc sample` beside it: so many rows of each class, seeded, with the mixture that came out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equilibrate.data.readers import read_rows
from equilibrate.errors import DataError
from equilibrate.fdc.label import Row
from equilibrate.fdc.mixture import choose_amounts
from equilibrate.types import Category

PAPER_COUNTS = {Category.EHD: 10_000, Category.IHD: 3_000, Category.MHD: 1_000}
"""Source: Equilibrate RLHF (arXiv 2502.11555)."""
GENERAL_PER_SAFETY = {
    Category.EHD: (20, 30),
    Category.IHD: (50, 100),
    Category.MHD: (100, 200),
}
"""General prompts for one of the class, least and most. Source: its predecessor (OpenReview
6YdCMtRMuj), as reviewers report it."""
IHD_SATURATES_AT = 3_000
"""More intent examples changed little there (same source)."""
_WINDOWS = 5
_TOLERANCE = 0.03
"""Of the unsafe share, as in `SaturationSchedule`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """Unsafe share of one class over a run."""

    num_iterations: int
    """That had the class."""
    first: float
    """Mean over the first fifth of them."""
    before: float
    """Over the last fifth but one."""
    last: float
    best: float

    @property
    def verdict(self) -> str:
        """A class is saturated where it falls by less than 0.03 and is within 0.03 of its best."""
        if self.last > self.best + _TOLERANCE:
            return "worse than it was"
        if self.before - self.last >= _TOLERANCE:
            return "still learning"
        return "saturated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """How many prompts of a class a given general set calls for."""

    category: Category
    have: int
    low: int
    high: int
    reason: str

    @property
    def change(self) -> int:
        """Prompts to add, below 0 to leave out."""
        return max(self.low - self.have, 0) - max(self.have - self.high, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Rows of a file by class."""

    counts: Mapping[Category, int]
    without_class: int
    """OTHER or none."""
    conflicts: int
    """Prompts that stand there with two classes."""
    copies: int
    """Rows whose prompt and class stand there already."""

    @property
    def effective_classes(self) -> float:
        """exp of the entropy of the shares: 5 if all five are equal, 1 if there is one."""
        total = sum(self.counts.values())
        shares = [count / total for count in self.counts.values() if count]
        return math.exp(-sum(share * math.log(share) for share in shares)) if shares else 0.0


def balance(rows: Sequence[Row]) -> Balance:
    classes: dict[str, set[Category]] = {}
    counts: Counter[Category] = Counter()
    copies = 0
    for row in rows:
        if row.given is None:
            continue
        counts[row.given] += 1
        found = classes.setdefault(row.text, set())
        copies += row.given in found
        found.add(row.given)
    return Balance(
        counts={category: counts[category] for category in Category},
        without_class=len(rows) - sum(counts.values()),
        conflicts=sum(len(found) > 1 for found in classes.values()),
        copies=copies,
    )


def read_saturation(metrics: Path) -> dict[Category, Saturation]:
    """Of each safety class that the metrics of a run have in at least ten iterations.

    Raises: DataError if the file cannot be read, or has no such class.
    """
    series: dict[Category, list[float]] = {c: [] for c in Category if c.is_safety}
    for where, row in read_rows(metrics):
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: must be the metrics of one iteration")
        for category, values in series.items():
            value = row.get(f"unsafe_fraction_{category}")
            # A metric that is not finite is written as null.
            if isinstance(value, int | float) and math.isfinite(value):
                values.append(float(value))
    found = {c: _saturation(v) for c, v in series.items() if len(v) >= 2 * _WINDOWS}
    if not found:
        raise DataError(
            f"{metrics}: must have unsafe_fraction_EHD, _IHD or _MHD in at least {2 * _WINDOWS} "
            "iterations; give the metrics.jsonl of a longer run whose prompts have classes"
        )
    return found


def _saturation(values: Sequence[float]) -> Saturation:
    size = len(values) // _WINDOWS
    # From the end, so that the newest window is a full one.
    windows = [
        values[len(values) - (i + 1) * size : len(values) - i * size] for i in range(_WINDOWS)
    ]
    means = [math.fsum(window) / size for window in windows]
    return Saturation(
        num_iterations=len(values),
        first=math.fsum(values[:size]) / size,
        before=means[1],
        last=means[0],
        best=min(means),
    )


def advise(
    counts: Mapping[Category, int],
    num_general: int,
    saturation: Mapping[Category, Saturation] | None = None,
) -> list[Advice]:
    """The recommended count of each safety class beside so many general prompts.

    Raises: DataError unless `num_general` is above 0.
    """
    if num_general < 1:
        raise DataError(
            f"general ({num_general}) must be above 0; the recommended counts are shares of it"
        )
    saturation = saturation or {}
    return [_advice(c, counts.get(c, 0), num_general, saturation.get(c)) for c in PAPER_COUNTS]


def _advice(category: Category, have: int, num_general: int, seen: Saturation | None) -> Advice:
    least, most = GENERAL_PER_SAFETY[category]
    low, high = round(num_general / most), round(num_general / least)
    reasons = [f"1:{most} to 1:{least} of {num_general} general prompts"]
    if category is Category.IHD and high > IHD_SATURATES_AT:
        high = IHD_SATURATES_AT
        low = min(low, high)
        reasons.append(f"at most {IHD_SATURATES_AT}, where intent is learned")
    if seen is not None:
        reasons.append(f"in the run {seen.verdict} at {seen.last:.0%} unsafe")
        if seen.verdict == "saturated" and have >= low:
            reasons.append(
                "more of it will not help: what the model does not know, answers with "
                "retrieved notes may teach"
                if category is Category.EHD and seen.last > 2 * _TOLERANCE
                else "more of it will not help"
            )
    return Advice(category=category, have=have, low=low, high=high, reason="; ".join(reasons))


def sample_rows(
    rows: Sequence[Row],
    amounts: Mapping[Category, int],
    *,
    oversample: bool,
    seed: int,
) -> list[Row]:
    """So many rows of each class, in the order of the file; the same seed gives the same rows.

    Raises: DataError naming a class that is too small, with what there is.
    """
    usable = [row for row in rows if row.given is not None]
    categories = [row.given for row in usable if row.given is not None]
    chosen = choose_amounts(
        categories, amounts, when_short="oversample" if oversample else "error", seed=seed
    )
    return [usable[i] for i in sorted(chosen)]


def scale(ratio: Mapping[Category, float], total: int) -> dict[Category, int]:
    """Whole numbers in the ratio that sum to `total`: largest remainders, ties by class."""
    weight = sum(ratio.values())
    exact = {c: total * ratio[c] / weight for c in Category if ratio.get(c)}
    amounts = {c: math.floor(value) for c, value in exact.items()}
    by_remainder = sorted(exact, key=lambda c: amounts[c] - exact[c])
    for category in by_remainder[: total - sum(amounts.values())]:
        amounts[category] += 1
    return amounts


def mixture_lines(counts: Mapping[Category, int]) -> Iterator[str]:
    """A table of counts, shares and general prompts for one of the class."""
    total = sum(counts.values())
    general = counts.get(Category.GENERAL, 0)
    yield f"{'class':<11}{'rows':>8}{'share':>8}  general for one"
    for category in Category:
        count = counts.get(category, 0)
        share = f"{count / total:.1%}" if total else "-"
        beside = f"{general / count:.0f}" if count and category.is_safety and general else "-"
        yield f"{category.value:<11}{count:>8}{share:>8}  {beside}"


def audit_json(
    found: Balance, saturation: Mapping[Category, Saturation], advice: Sequence[Advice]
) -> dict[str, Any]:
    return {
        "counts": {c.value: count for c, count in found.counts.items()},
        "effective_classes": found.effective_classes,
        "without_class": found.without_class,
        "conflicts": found.conflicts,
        "copies": found.copies,
        "saturation": {
            c.value: {"first": s.first, "last": s.last, "best": s.best, "verdict": s.verdict}
            for c, s in saturation.items()
        },
        "advice": [
            {
                "class": a.category.value,
                "have": a.have,
                "low": a.low,
                "high": a.high,
                "reason": a.reason,
            }
            for a in advice
        ],
    }
