"""How good a scorer turned out to be, on answers that it did not learn from."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from equilibrate.types import ScorerKind, is_unsafe

Scores = NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEWTON_STEPS = 50
RIDGE = 1e-3
"""Keeps the curve finite where the two sides do not overlap."""
CONFIDENCE_GROUPS = 4
"""Groups of equally many answers, from the smallest to the largest |cost|."""


def calibrate(
    kind: ScorerKind, scores: Scores, is_safe: NDArray[np.bool_], *, num_pairs: int
) -> dict[str, float]:
    """Figures for the scorer's sidecar.

    Args:
        scores: [A], end scores: of pairs, side by side, of which the first should be the higher;
            then of answers that are labelled one by one, for a cost model.
        is_safe: likewise, labels of the answers; a reward model has no use for them.
    Returns:
        num_pairs, num_answers (single ones), where there are; ranking_accuracy, share of pairs in
            the right order (without pairs, of all single answers that are unsafe with all that are
            safe, which is the AUC; beside pairs `auc`); score_std, q05 to q95.
        reward: better_mean, worse_mean.
        cost: unsafe_mean, safe_mean and quantiles of each side; sign_accuracy, share of answers on
            their side of 0; unsafe_precision, of answers above 0 the share that is unsafe;
            unsafe_recall, of unsafe answers the share above 0; sign_accuracy_1 to _4, from the
            quarter of answers nearest to 0 to the farthest: how far a sign may be believed.
        A mean cost between safe_mean and unsafe_mean reads as a share of unsafe answers: a budget
        is placed by it. A figure over no answers is left out: that is not the same as 0.
    """
    figures = _order(scores, is_safe, num_pairs) | {
        "score_std": float(scores.std()),
        **_quantiles("score", scores),
    }
    if kind == "reward":
        better, worse = scores[0::2], scores[1::2]
        return figures | {"better_mean": float(better.mean()), "worse_mean": float(worse.mean())}
    return figures | _signs(scores, is_safe)


def place_zero(costs: Scores, is_safe: NDArray[np.bool_]) -> float:
    """The cost from which on an answer is rather unsafe: a logistic curve of the two sides, each of
    the same weight, is at one half there.

    How many of each the file happens to hold does not move it: where an answer comes from a policy,
    the share of unsafe ones is another. The threshold of the best accuracy on the same answers is
    the best of many steps: on others at most a point better, and from one draw of 100 answers a
    side to the next it jumps three times as far.

    Args: costs, is_safe: [A], answers of both sides.
    Returns: nan where costs do not rise from safe to unsafe answers.
    """
    mean, std = costs.mean(), costs.std() or 1.0
    rows = np.stack([(costs - mean) / std, np.ones(len(costs))])
    weights = np.where(is_safe, 0.5 / is_safe.sum(), 0.5 / (~is_safe).sum())
    curve = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        unsafe = (1 + np.tanh(curve @ rows / 2)) / 2  # sigmoid of either sign without overflow
        slope = rows @ (weights * (unsafe - ~is_safe)) + RIDGE * curve
        bend = (rows * weights * unsafe * (1 - unsafe)) @ rows.T + RIDGE * np.eye(2)
        curve -= np.linalg.solve(bend, slope)
    return float(mean - std * curve[1] / curve[0]) if curve[0] > 0 else math.nan


def _order(scores: Scores, is_safe: NDArray[np.bool_], num_pairs: int) -> dict[str, float]:
    figures, area = {}, "ranking_accuracy"
    if num_pairs:
        first, second = scores[: 2 * num_pairs].reshape(-1, 2).T
        figures = {"num_pairs": float(num_pairs), area: float((first > second).mean())}
        area = "auc"
    scores, is_safe = scores[2 * num_pairs :], is_safe[2 * num_pairs :]
    if len(scores):
        figures["num_answers"] = float(len(scores))
    if is_safe.any() and not is_safe.all():
        figures[area] = auc(scores, is_safe)
    return figures


def auc(scores: Scores, is_safe: NDArray[np.bool_]) -> float:
    """Of all pairs of an unsafe and a safe answer, the share whose unsafe one scores higher.

    Args: scores, is_safe: [A], answers of both sides.
    """
    unsafe, safe = scores[~is_safe], np.sort(scores[is_safe])
    # Of every unsafe answer the safe ones below it, and half of its equals.
    below = np.searchsorted(safe, unsafe, "left") + np.searchsorted(safe, unsafe, "right")
    return float(below.mean() / (2 * len(safe)))


def _signs(costs: Scores, is_safe: NDArray[np.bool_]) -> dict[str, float]:
    figures = {}
    for name, side in (("unsafe", costs[~is_safe]), ("safe", costs[is_safe])):
        if len(side):
            figures[f"{name}_mean"] = float(side.mean())
            figures |= _quantiles(name, side)
    above = is_unsafe(costs)
    hits = above != is_safe
    figures["sign_accuracy"] = float(hits.mean())
    if above.any():
        figures["unsafe_precision"] = float((~is_safe[above]).mean())
    if not is_safe.all():
        figures["unsafe_recall"] = float(above[~is_safe].mean())
    by_size = hits[np.argsort(np.abs(costs), kind="stable")]
    for number, group in enumerate(np.array_split(by_size, CONFIDENCE_GROUPS), start=1):
        if len(group):
            figures[f"sign_accuracy_{number}"] = float(group.mean())
    return figures


def _quantiles(name: str, values: Scores) -> dict[str, float]:
    return {
        f"{name}_q{round(100 * share):02d}": float(value)
        for share, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)
    }
