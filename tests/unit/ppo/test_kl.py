import math

import pytest
import torch

from equilibrate.ppo.kl import AdaptiveKL, FixedKL, kl_penalty, shape_rewards


def test_kl_penalty_is_the_log_ratio_inside_the_response():
    old = torch.tensor([[math.nan, -1.0, -2.0]])
    ref = torch.tensor([[0.0, -1.5, -1.0]])
    mask = torch.tensor([[False, True, True]])
    assert kl_penalty(old, ref, mask).tolist() == [[0.0, 0.5, -1.0]]


def test_kl_penalty_checks_shapes():
    with pytest.raises(ValueError, match="shapes must be equal"):
        kl_penalty(torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(1, 2) > 0)


def test_fixed_kl_stays():
    controller = FixedKL(0.02)
    assert controller.update(100.0, 64) == controller.value == 0.02


@pytest.mark.parametrize(
    ("observed", "num_rollouts", "expected"),
    [
        (0.05, 100, 0.1),  # on target
        (0.055, 100, 0.1 * 1.01),  # error .1, a tenth of the horizon
        (5.0, 100, 0.1 * 1.02),  # error clipped at +.2
        (-5.0, 100, 0.1 * 0.98),  # and at -.2
        (-5.0, 10_000, 0.1 * 0.8),  # a batch counts as one horizon at most
    ],
)
def test_adaptive_kl_by_hand(observed, num_rollouts, expected):
    controller = AdaptiveKL(0.1, target=0.05, horizon=1000)
    assert controller.update(observed, num_rollouts) == pytest.approx(expected)
    assert controller.value == pytest.approx(expected)


@pytest.mark.parametrize("make", [FixedKL, lambda x: AdaptiveKL(x, target=0.05, horizon=100)])
def test_state_round_trip_continues_exactly(make):
    first, second = make(0.1), make(0.7)
    first.update(0.3, 64)
    second.load_state_dict(first.state_dict())
    assert second.update(0.01, 64) == first.update(0.01, 64)


# two prompts of different length, right-padded; the second response has a hole
MASK = torch.tensor([[False, True, True, False, False], [False, False, True, False, True]])
KL = torch.tensor([[9.0, 1.0, 2.0, 9.0, 9.0], [9.0, 9.0, -1.0, 9.0, 3.0]])
SCORE = torch.tensor([10.0, -4.0])


def test_reward_pays_the_kl_and_ends_with_the_score():
    shaped = shape_rewards(SCORE, KL, MASK, kl_coef=0.5, sign=1, clip=50.0)
    # -0.5 * kl, plus the score at the last response token
    expected = torch.tensor([[0, -0.5, 9.0, 0, 0], [0, 0, 0.5, 0, -5.5]])
    torch.testing.assert_close(shaped, expected)


def test_cost_gains_the_kl():
    shaped = shape_rewards(SCORE, KL, MASK, kl_coef=0.5, sign=-1, clip=50.0)
    expected = torch.tensor([[0, 0.5, 11.0, 0, 0], [0, 0, -0.5, 0, -2.5]])
    torch.testing.assert_close(shaped, expected)


def test_the_sum_of_score_and_penalty_is_clamped():
    shaped = shape_rewards(torch.tensor([80.0, -80.0]), KL, MASK, kl_coef=40.0, sign=1, clip=50.0)
    # row 0: -40; 80 - 80 = 0.  row 1: +40; -80 - 120 -> -50
    expected = torch.tensor([[0, -40.0, 0.0, 0, 0], [0, 0, 40.0, 0, -50.0]])
    torch.testing.assert_close(shaped, expected)


def test_nan_outside_the_response_and_a_row_without_response():
    mask = MASK & torch.tensor([[True], [False]])
    kl = torch.where(mask, KL, math.nan)
    shaped = shape_rewards(torch.tensor([10.0, math.nan]), kl, mask, kl_coef=0.5, sign=1, clip=50.0)
    torch.testing.assert_close(shaped, torch.tensor([[0, -0.5, 9.0, 0, 0], [0.0] * 5]))


def test_one_score_per_row_is_required():
    with pytest.raises(ValueError, match="shapes must be equal"):
        shape_rewards(SCORE[:1], KL, MASK, kl_coef=0.5, sign=1, clip=50.0)
