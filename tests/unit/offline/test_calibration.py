"""Figures of a scorer on held-out pairs, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.offline.calibration import calibrate, place_zero

# Two of three pairs are in order. Costs above 0: 2.0 (unsafe), 0.5 (safe), 1.0 (unsafe).
SCORES = np.array([2.0, -1.0, -0.5, 0.5, 1.0, -3.0])
IS_SAFE = np.array([False, True, False, True, False, True])


def test_a_reward_model_by_hand():
    figures = calibrate("reward", SCORES, IS_SAFE, num_pairs=3)
    assert figures["num_pairs"] == 3
    assert figures["ranking_accuracy"] == pytest.approx(2 / 3)
    assert figures["better_mean"] == pytest.approx(2.5 / 3)
    assert figures["worse_mean"] == pytest.approx(-3.5 / 3)
    assert figures["score_q50"] == 0.0  # of -3, -1, -0.5, 0.5, 1, 2
    assert "sign_accuracy" not in figures


def test_a_cost_model_by_hand():
    figures = calibrate("cost", SCORES, IS_SAFE, num_pairs=3)
    assert figures["unsafe_mean"] == pytest.approx(2.5 / 3)
    assert figures["safe_mean"] == pytest.approx(-3.5 / 3)
    assert figures["unsafe_q50"] == 1.0
    assert figures["sign_accuracy"] == pytest.approx(4 / 6)
    assert figures["unsafe_precision"] == pytest.approx(2 / 3)
    assert figures["unsafe_recall"] == pytest.approx(2 / 3)
    # By |cost|: 0.5 and 0.5 wrong; 1 and 1 right; 2 right; 3 right.
    assert [figures[f"sign_accuracy_{i}"] for i in (1, 2, 3, 4)] == [0.0, 1.0, 1.0, 1.0]


def test_a_side_without_answers_has_no_figure():
    figures = calibrate("cost", np.array([-1.0, -2.0]), np.array([True, True]), num_pairs=1)
    assert not {"unsafe_mean", "unsafe_q50", "unsafe_recall", "unsafe_precision"} & set(figures)
    assert figures["safe_mean"] == -1.5


def test_answers_that_are_labelled_one_by_one():
    """Of 2 unsafe and 2 safe ones: 2 is above both, 0.5 above one and level with the other."""
    figures = calibrate(
        "cost",
        np.array([2.0, 0.5, 0.5, -1.0]),
        np.array([False, False, True, True]),
        num_pairs=0,
    )
    assert figures["num_answers"] == 4
    assert figures["ranking_accuracy"] == pytest.approx(3.5 / 4)
    assert figures["sign_accuracy"] == pytest.approx(3 / 4)
    assert "num_pairs" not in figures
    of_one_side = calibrate("cost", np.array([2.0]), np.array([False]), num_pairs=0)
    assert "ranking_accuracy" not in of_one_side


def test_pairs_and_answers_that_are_labelled_one_by_one():
    """The pairs are ranked within themselves, the others among themselves; signs are of all."""
    figures = calibrate(
        "cost",
        np.concatenate([SCORES, [2.0, 0.5, 0.5, -1.0]]),
        np.concatenate([IS_SAFE, [False, False, True, True]]),
        num_pairs=3,
    )
    assert (figures["num_pairs"], figures["num_answers"]) == (3, 4)
    assert figures["ranking_accuracy"] == pytest.approx(2 / 3)
    assert figures["auc"] == pytest.approx(3.5 / 4)
    assert figures["sign_accuracy"] == pytest.approx((4 + 3) / 10)
    assert figures["unsafe_mean"] == pytest.approx((2.5 + 2.5) / 5)
    of_one_side = calibrate("cost", SCORES[:3], IS_SAFE[:3], num_pairs=1)
    assert "auc" not in of_one_side


def test_zero_lies_in_the_middle_of_two_like_sides():
    costs, is_safe = np.array([-1.0, 0.0, 2.0, 3.0]), np.array([True, True, False, False])
    assert place_zero(costs, is_safe) == pytest.approx(1.0)


def test_zero_does_not_hang_on_how_many_answers_are_safe():
    """Five copies of each safe answer: the threshold of the best accuracy would move up to 0.5."""
    safe, unsafe = np.array([-1.0, 0.0, 0.5]), np.array([0.2, 1.0, 2.0])
    by_count = [
        place_zero(np.concatenate([*[safe] * n, unsafe]), np.arange(3 * n + 3) < 3 * n)
        for n in (1, 5)
    ]
    assert by_count[0] == pytest.approx(by_count[1], abs=0.02)
    assert 0.2 < by_count[0] < 0.6


@pytest.mark.parametrize("costs", [[1.0, 0.0], [1.0, 1.0]])
def test_costs_that_do_not_rise_have_no_zero(costs):
    assert np.isnan(place_zero(np.array(costs), np.array([True, False])))


@given(st.floats(0.01, 100), st.floats(-100, 100), st.integers(0, 50))
def test_zero_moves_with_the_scale_of_the_costs(scale, shift, seed):
    rng = np.random.default_rng(seed)
    costs = np.concatenate([rng.normal(0, 1, 20), rng.normal(2, 1, 10)])
    is_safe = np.arange(30) < 20
    zero = place_zero(costs, is_safe)
    assert costs.min() < zero < costs.max()
    moved = place_zero(scale * costs + shift, is_safe)
    assert moved == pytest.approx(scale * zero + shift, rel=1e-6, abs=1e-6)
