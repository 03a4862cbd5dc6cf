"""The local labeller: a classifier on labelled prompts, and what it is worth on unseen ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equilibrate.fdc.classifier import (
    Classifier,
    Embed,
    Inputs,
    encode,
    f1_by_class,
    folds,
    make_inputs,
    require_library,
)
from equilibrate.types import Category

NUM_RESAMPLES = 1000
_NUM_BINS = 10

Interval = tuple[float, float, float]
"""Value, and the two ends of its 95 % interval."""


class LocalLabeller:
    """Learns from labelled prompts at once; a file of weights is never written or read.

    Raises: ResourceError without scikit-learn, DataError as `encode`.
    """

    name = "local"

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[Category],
        *,
        embed: Embed | None = None,
        seed: int = 0,
    ) -> None:
        require_library()
        self._embed = embed
        self._classifier = Classifier(seed=seed).fit(make_inputs(texts, embed), labels)

    def label(self, texts: Sequence[str]) -> Mapping[str, tuple[Category, float]]:
        """Class of each text and the probability that it is right."""
        different = list(dict.fromkeys(texts))
        if not different:
            return {}
        best, chances = self._classifier.predict(make_inputs(different, self._embed))
        classes = self._classifier.classes
        return {
            text: (classes[number], float(chance))
            for text, number, chance in zip(different, best, chances, strict=True)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """A labeller on prompts that it did not learn from."""

    num_prompts: int
    macro_f1: Interval
    f1: Mapping[str, float]
    accuracy: float
    calibration_error: float
    """Mean distance of confidence and share right, over ten bins of equally many prompts."""

    def to_json(self) -> dict[str, Any]:
        value, low, high = self.macro_f1
        return {
            "num_prompts": self.num_prompts,
            "macro_f1": {"value": value, "low": low, "high": high},
            "f1": dict(self.f1),
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
        }


def cross_validate(
    texts: Sequence[str],
    labels: Sequence[Category],
    *,
    embed: Embed | None = None,
    seeds: Sequence[int] = (0,),
) -> Worth:
    """Learn on four fifths and label the last one, five times for each seed.

    All that is chosen (weights of the members, leaning to rare classes) is chosen on the four
    fifths. The interval is over prompts, drawn anew with replacement; seeds are averaged.

    Raises: ResourceError without scikit-learn, DataError as `encode`.
    """
    require_library()
    classes, y = encode(labels)
    inputs = make_inputs(texts, embed)
    runs = [_unseen(inputs, labels, y, seed) for seed in seeds]
    said = np.stack([best for best, _ in runs])
    chances = np.concatenate([chance for _, chance in runs])
    f1 = np.mean([f1_by_class(y, row, len(classes)) for row in said], axis=0)
    return Worth(
        num_prompts=len(y),
        macro_f1=macro_f1_interval(y, said),
        f1={c.value: float(value) for c, value in zip(classes, f1, strict=True)},
        accuracy=float((said == y).mean()),
        calibration_error=calibration_error(chances, (said == y).ravel()),
    )


def _unseen(
    inputs: Inputs, labels: Sequence[Category], y: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    best, chances = np.zeros_like(y), np.zeros(len(y))
    for learn, test in folds(list(inputs.texts), y, seed):
        model = Classifier(seed=seed).fit(inputs.rows(learn), [labels[row] for row in learn])
        best[test], chances[test] = model.predict(inputs.rows(test))
    return best, chances


def macro_f1_interval(
    y: NDArray[np.int64], said: NDArray[np.int64], baseline: NDArray[np.int64] | None = None
) -> Interval:
    """Macro-F1, averaged over labellings, with a bootstrap interval over prompts.

    Args:
        y: [N] true classes, numbered from 0 without a gap.
        said: [S, N], one labelling a seed.
        baseline: [S, N]; where given, the result is how far `said` is above it.
    """
    num = int(max(y.max(), said.max())) + 1
    generator = np.random.default_rng(0)

    def score(weights: NDArray[np.float64]) -> float:
        value = _mean_macro_f1(y, said, weights, num)
        return value - (0.0 if baseline is None else _mean_macro_f1(y, baseline, weights, num))

    drawn = generator.multinomial(len(y), np.full(len(y), 1 / len(y)), size=NUM_RESAMPLES)
    low, high = np.quantile([score(row.astype(np.float64)) for row in drawn], [0.025, 0.975])
    return score(np.ones(len(y))), float(low), float(high)


def _mean_macro_f1(
    y: NDArray[np.int64], said: NDArray[np.int64], weights: NDArray[np.float64], num: int
) -> float:
    there = np.bincount(y, weights=weights, minlength=num)
    classes = np.unique(y)
    scores = []
    for row in said:
        right = row == y
        hits = np.bincount(y[right], weights=weights[right], minlength=num)
        total = there + np.bincount(row, weights=weights, minlength=num)
        f1 = np.divide(2 * hits, total, out=np.zeros(num), where=total > 0)
        scores.append(f1[classes].mean())
    return float(np.mean(scores))


def calibration_error(chances: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Mean |confidence - share right| over ten bins of equally many prompts."""
    order = np.argsort(chances, kind="stable")
    bins = [rows for rows in np.array_split(order, _NUM_BINS) if len(rows)]
    gaps = [abs(chances[rows].mean() - right[rows].mean()) * len(rows) for rows in bins]
    return float(sum(gaps) / len(chances))
