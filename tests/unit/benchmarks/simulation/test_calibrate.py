"""The fit finds constants that made the rows, and says what a row alone would be worth."""

from dataclasses import astuple, replace

import numpy as np
import pytest

from benchmarks.simulation.calibrate import GUESS, efficiency_at, fit
from benchmarks.simulation.published import read
from equilibrate.planner.events import simulate


@pytest.fixture(scope="module")
def rows():
    names = ("DeepSeek", "Qwen3-235B", "Qwen3-32B")
    return [row for row in read().rows if row.gpu == "H100" and row.name.startswith(names)]


def made_by(rows, efficiency):
    return [replace(row, step_seconds=simulate(row.costs(efficiency)).step) for row in rows]


def test_rows_made_by_the_guess_are_left_alone(rows):
    found = fit(made_by(rows, GUESS))
    assert astuple(found.efficiency) == pytest.approx(astuple(GUESS))
    assert found.errors == pytest.approx([0.0] * len(rows), abs=1e-9)
    assert found.left_out_errors == pytest.approx([0.0] * len(rows), abs=1e-9)


def test_constants_that_made_the_rows_are_found(rows):
    truth = replace(GUESS, matmul=0.55, memory=0.35)
    found = fit(made_by(rows, truth))
    assert found.efficiency.matmul == pytest.approx(0.55, rel=0.1)
    assert found.efficiency.memory == pytest.approx(0.35, rel=0.1)
    assert max(map(abs, found.errors)) < 0.05


def test_a_wrong_row_shows_when_it_is_left_out(rows):
    made = made_by(rows, GUESS)
    made[0] = replace(made[0], step_seconds=3 * made[0].step_seconds)
    found = fit(made)
    # Left out it must be missed by about the factor three, and by more than when it is fitted.
    assert found.left_out_errors[0] == pytest.approx(1 / 3 - 1, abs=0.1)
    assert abs(found.left_out_errors[0]) > abs(found.errors[0])


def test_fractions_stop_at_one():
    far = efficiency_at(np.full(len(astuple(GUESS)), 10.0))
    assert (far.matmul, far.memory, far.exchange, far.sync) == (1.0, 1.0, 1.0, 1.0)
    assert far.layer_seconds > 1.0


def test_no_constant_belongs_to_a_row():
    """One set for all rows of a kind of hardware, and fewer constants than rows."""
    published = read()
    for gpu in {row.gpu for row in published.rows}:
        assert sum(row.gpu == gpu for row in published.rows) > len(astuple(GUESS))
