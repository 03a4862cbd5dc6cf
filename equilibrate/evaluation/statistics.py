"""Estimates with 95 % intervals, all in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from equilibrate.errors import DataError

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
MIN_CLAIMED = 6
"""Observations below which no difference is called significant. If n pairs all move the same way, a
sign test gives 2 / 2^n: 0.0625 with five, 0.03 with six."""
_T_95 = (
    12.706204736,
    4.302652730,
    3.182446305,
    2.776445105,
    2.570581836,
    2.446911851,
    2.364624252,
    2.306004135,
    2.262157163,
    2.228138852,
)
"""Two-sided 95 % quantiles of Student's t with 1 to 10 degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval over n observations."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def is_significant(self) -> bool:
        """For a difference: there are enough observations, and the interval leaves out zero."""
        return self.n >= MIN_CLAIMED and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, float | int]:
        """Rounded to 6 decimals: finer than any interval here, and readable."""
        return {k: v if k == "n" else round(v, 6) for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, figure: Mapping[str, Any]) -> Self:
        """Raises: DataError if a part is missing or is not a number."""
        try:
            mean, low, high = (float(figure[key]) for key in ("mean", "low", "high"))
            return cls(mean=mean, low=low, high=high, n=int(figure["n"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"figure ({figure!r}) must be {{mean, low, high, n}} with a number each"
            ) from error


def wilson_interval(successes: int, n: int) -> Estimate:
    """A rate with its Wilson score interval, which stays in [0, 1] and has width at 0 and 1.

        centre (p + z^2 / 2n) / (1 + z^2 / n),
        half width z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

    Raises: ValueError unless 0 <= successes <= n and n > 0.
    Source: Wilson 1927.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes ({successes}) must lie in [0, n] with n ({n}) above 0")
    p = successes / n
    scale = 1 + Z_95**2 / n
    centre = (p + Z_95**2 / (2 * n)) / scale
    half = Z_95 / scale * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
    # At the ends the formula is exactly 0 or 1 but for rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Estimate(mean=p, low=low, high=high, n=n)


def mean_interval(
    values: Sequence[float], *, lower: float = -math.inf, upper: float = math.inf
) -> Estimate:
    """A mean with its t-interval: mean +- t * s / sqrt(n), cut to the possible range of the values.

    A single value has no interval: low and high are then the ends of the range. Equal ones show no
    spread to make one of; what n draws have not shown has a share of at most q, though:

        mean - q (mean - lower) to mean + q (upper - mean),   q = 1 - 0.05^(1/n), about 3 / n

    Without a range nothing bounds it: low and high are then the mean.
    Raises: ValueError if empty.
    Source: Hanley and Lippman-Hand 1983.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if n == 1:
        return Estimate(mean=mean, low=lower, high=upper, n=1)
    if (array == array[0]).all():
        mean = float(array[0])
        unseen = 1 - 0.05 ** (1 / n)
        low, high = (mean + unseen * (end - mean) for end in (lower, upper))
        is_bounded = math.isfinite(upper - lower)
        return Estimate(
            mean=mean, low=low if is_bounded else mean, high=high if is_bounded else mean, n=n
        )
    half = student_t_95(n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean=mean, low=max(lower, mean - half), high=min(upper, mean + half), n=n)


def student_t_95(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t; above 10 degrees by its expansion, good to 2e-4.

    Source: Abramowitz and Stegun 26.7.5.
    """
    if degrees <= len(_T_95):
        return _T_95[degrees - 1]
    z, v = Z_95, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    lower: float = -math.inf,
    upper: float = math.inf,
) -> Estimate:
    """Mean of after - before on the same prompts, with the t-interval of `mean_interval`.

    The prompt's own difficulty cancels. Args: lower, upper: what a single difference can be.
    Raises: ValueError if empty or of different lengths.
    """
    _require_pairs(before, after)
    gaps = [second - first for first, second in zip(before, after, strict=True)]
    return mean_interval(gaps, lower=lower, upper=upper)


def paired_rate_difference(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Difference of two rates over the same prompts, each 0 or 1, with an adjusted Wald interval.

        p+ = (ups + 1) / (n + 2),   p- = (downs + 1) / (n + 2),   d = p+ - p-
        d +- z sqrt((p+ + p- - d^2) / (n + 2)),   cut to [-1, 1]

    Like Wilson's it has width where nothing changed. Of a t-interval most would have none there:
    with five prompts of which each changes with probability 0.05, it holds the truth 22 times of
    100, this one always.

    Returns: the observed difference, which is not the middle of its interval.
    Raises: ValueError if empty or of different lengths.
    Source: Bonett and Price 2012.
    """
    _require_pairs(before, after)
    n = len(before)
    ups = sum(second > first for first, second in zip(before, after, strict=True))
    downs = sum(second < first for first, second in zip(before, after, strict=True))
    p_up, p_down = (ups + 1) / (n + 2), (downs + 1) / (n + 2)
    centre = p_up - p_down
    half = Z_95 * math.sqrt((p_up + p_down - centre**2) / (n + 2))
    return Estimate(
        mean=(ups - downs) / n, low=max(-1.0, centre - half), high=min(1.0, centre + half), n=n
    )


def _require_pairs(before: Sequence[float], after: Sequence[float]) -> None:
    if len(before) != len(after) or len(before) == 0:
        raise ValueError(
            f"before ({len(before)}) and after ({len(after)}) must pair up and not be empty"
        )
