import math

import pytest
import torch

from equilibrate.ppo.rewards import shape_rewards

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
