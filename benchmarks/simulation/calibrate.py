"""Fit the few constants of a kind of hardware to published rows, and say how well that carries.

The fit minimises, over the logarithms of the constants,

    sum over rows of (ln simulated - ln published)^2 / ROW_SPREAD^2
    + sum over constants of (ln constant - ln guess)^2 / GUESS_SPREAD^2.

The second term keeps constants that the rows hardly determine near round numbers, chosen after a
first look at the H100 rows. Leave-one-out refits without a row and then predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np

from benchmarks.simulation.published import Row
from equilibrate.planner.events import simulate
from equilibrate.planner.hardware import Efficiency

ROW_SPREAD = 0.15
GUESS_SPREAD = 0.7
GUESS = Efficiency(
    matmul=0.4,
    memory=0.5,
    exchange=0.3,
    sync=0.1,
    layer_seconds=50e-6,
    network_seconds=100e-6,
    fixed_seconds=8.0,
)
FULL_ROUNDS, LEAVE_ONE_OUT_ROUNDS = 5, 2
DIFFERENCE, LONGEST_MOVE = 0.03, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Constants of one kind of hardware; errors are simulated / published - 1, a row each."""

    efficiency: Efficiency
    errors: list[float]
    left_out_errors: list[float]


def fit(rows: Sequence[Row], *, seed: int = 0) -> Fit:
    """The constants for all rows, and each row's error with and without it in the fit."""
    point, simulated, slopes = _solve(rows, np.zeros(len(astuple(GUESS))), seed)
    published = np.log([row.step_seconds for row in rows])
    left_out = []
    for index, row in enumerate(rows):
        kept = [place for place in range(len(rows)) if place != index]
        others = [rows[place] for place in kept]
        start = point + _move(simulated[kept] - published[kept], slopes[kept], point)
        for _ in range(LEAVE_ONE_OUT_ROUNDS - 1):
            start = start + _move(
                _steps(others, start, seed) - published[kept], slopes[kept], start
            )
        left_out.append(float(np.expm1(_steps([row], start, seed)[0] - published[index])))
    return Fit(
        efficiency=efficiency_at(point),
        errors=[float(error) for error in np.expm1(simulated - published)],
        left_out_errors=left_out,
    )


def efficiency_at(point: np.ndarray) -> Efficiency:
    """`point` [constants]: natural logarithms of the factors on the guess; fractions end at 1."""
    values = np.asarray(astuple(GUESS)) * np.exp(point)
    values[:4] = np.minimum(values[:4], 1.0)
    names = [field.name for field in fields(Efficiency)]
    return Efficiency(**{name: float(value) for name, value in zip(names, values, strict=True)})


def _solve(
    rows: Sequence[Row], point: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss-Newton: best point, log step times there, and their slopes [rows, constants]."""
    published = np.log([row.step_seconds for row in rows])
    simulated = _steps(rows, point, seed)
    for _ in range(FULL_ROUNDS):
        slopes = _slopes(rows, point, simulated, seed)
        move, before = (
            _move(simulated - published, slopes, point),
            _loss(simulated - published, point),
        )
        for _ in range(4):
            tried = _steps(rows, point + move, seed)
            if _loss(tried - published, point + move) < before:
                point, simulated = point + move, tried
                break
            move = move / 3
        else:
            break
    return point, simulated, _slopes(rows, point, simulated, seed)


def _loss(residuals: np.ndarray, point: np.ndarray) -> float:
    return float((residuals**2).sum() / ROW_SPREAD**2 + (point**2).sum() / GUESS_SPREAD**2)


def _move(residuals: np.ndarray, slopes: np.ndarray, point: np.ndarray) -> np.ndarray:
    weight = (ROW_SPREAD / GUESS_SPREAD) ** 2
    matrix = slopes.T @ slopes + weight * np.eye(len(point))
    move = -np.linalg.solve(matrix, slopes.T @ residuals + weight * point)
    return np.clip(move, -LONGEST_MOVE, LONGEST_MOVE)


def _steps(rows: Sequence[Row], point: np.ndarray, seed: int) -> np.ndarray:
    efficiency = efficiency_at(point)
    return np.log([simulate(row.costs(efficiency), seed=seed).step for row in rows])


def _slopes(rows: Sequence[Row], point: np.ndarray, simulated: np.ndarray, seed: int) -> np.ndarray:
    columns = [
        (_steps(rows, point + DIFFERENCE * axis, seed) - simulated) / DIFFERENCE
        for axis in np.eye(len(point))
    ]
    return np.stack(columns, axis=1)
