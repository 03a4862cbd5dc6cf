import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.ppo.advantages import gae
from equilibrate.ppo.kl import shape_rewards
from equilibrate.types import combined


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def full(tensor):
    return torch.ones_like(tensor, dtype=torch.bool)


def random_batch(seed, rows=3, width=7):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=generator) < 0.6
    return rewards, values, mask


seeds = st.integers(0, 10_000)


def test_hole_in_the_mask_is_skipped_not_discounted_through():
    # last: 1 - .5 = .5; first: 0 + .5 - .5 + .95 * .5 = .475
    mask = torch.tensor([[True, False, True]])
    advantages, returns = gae(row(0, 0, 1), row(0.5, 9, 0.5), mask, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(advantages, row(0.475, 0, 0.5))
    torch.testing.assert_close(returns, row(0.975, 0, 1.0))


def test_three_steps_by_hand():
    # gamma .9, lambda .5: deltas 1 + .9*2 - 1 = 1.8, 0 + .9*3 - 2 = .7, 2 - 3 = -1
    # advantages: -1; .7 + .45*-1 = .25; 1.8 + .45*.25 = 1.9125
    rewards, values = row(1, 0, 2), row(1, 2, 3)
    advantages, returns = gae(rewards, values, full(values), gamma=0.9, gae_lambda=0.5)
    torch.testing.assert_close(advantages, row(1.9125, 0.25, -1.0))
    torch.testing.assert_close(returns, row(2.9125, 2.25, 2.0))


@given(seeds)
def test_undiscounted_without_values_is_the_sum_of_future_rewards(seed):
    rewards, _, mask = random_batch(seed)
    advantages, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, gae_lambda=1.0)
    kept = torch.where(mask, rewards, 0.0)
    future = kept.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, torch.where(mask, future, 0.0))


@given(seeds)
def test_lambda_one_returns_do_not_depend_on_the_values(seed):
    rewards, values, mask = random_batch(seed)
    _, returns = gae(rewards, values, mask, gamma=0.9, gae_lambda=1.0)
    _, without = gae(rewards, torch.zeros_like(values), mask, gamma=0.9, gae_lambda=1.0)
    torch.testing.assert_close(returns, without)


def test_lambda_zero_is_the_td_error():
    rewards, values = row(1, -1, 2), row(0.5, 0.25, 1.5)
    advantages, _ = gae(rewards, values, full(values), gamma=0.8, gae_lambda=0.0)
    # 1 + .8*.25 - .5, -1 + .8*1.5 - .25, 2 - 1.5
    torch.testing.assert_close(advantages, row(0.7, -0.05, 0.5))


@given(seeds)
def test_a_masked_row_equals_the_row_without_its_holes(seed):
    rewards, values, mask = random_batch(seed, rows=1)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.7)
    short_rewards, short_values = rewards[mask][None], values[mask][None]
    short = gae(short_rewards, short_values, full(short_values), gamma=0.9, gae_lambda=0.7)
    torch.testing.assert_close(advantages[mask], short[0][0])
    torch.testing.assert_close(returns[mask], short[1][0])


@given(seeds)
def test_entries_outside_the_response_may_be_nan_and_come_out_zero(seed):
    rewards, values, mask = random_batch(seed)
    clean = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.7)
    rewards, values = (torch.where(mask, x, math.nan) for x in (rewards, values))
    dirty = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.7)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)
        assert torch.all(one[~mask] == 0)


def test_advantages_carry_no_gradient():
    values = row(1, 2).requires_grad_()
    advantages, returns = gae(row(1, 1), values, full(values), gamma=1.0, gae_lambda=0.9)
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_empty_batches_and_rows_are_safe():
    for shape in ((0, 3), (2, 0), (2, 3)):
        zero = torch.zeros(shape)
        advantages, returns = gae(zero, zero, zero > 0, gamma=1.0, gae_lambda=0.9)
        assert advantages.shape == returns.shape == shape
        assert not advantages.any()


def test_gae_checks_shapes():
    with pytest.raises(ValueError, match="shapes must be equal"):
        gae(row(1), row(1, 2), full(row(1)), gamma=1.0, gae_lambda=1.0)


def test_multiplier_zero_is_the_reward_advantage_alone():
    reward, cost = row(1, -2, 3), row(5, 5, -5)
    assert torch.equal(combined(reward, cost, 0.0), reward)


def test_large_multiplier_is_minus_the_cost_advantage():
    reward, cost = row(1, -2, 3), row(5, 4, -5)
    torch.testing.assert_close(combined(reward, cost, 1e12), -cost)


def test_combination_by_hand():
    # (4 - 3 * 2) / 4
    assert combined(row(4), row(2), 3.0).item() == -0.5


@given(seeds, st.floats(0, 1e6))
def test_combination_never_exceeds_the_larger_of_the_two(seed, multiplier):
    reward, cost, _ = random_batch(seed)
    found = combined(reward, cost, multiplier).abs()
    assert torch.all(found <= torch.maximum(reward.abs(), cost.abs()) * (1 + 1e-12))


@given(seeds, st.floats(0, 100))
def test_the_kl_penalty_keeps_its_strength_under_every_multiplier(seed, multiplier):
    """The KL part of the combined advantage is that of plain PPO with the same coefficient."""
    kl, values, mask = random_batch(seed)
    score = values[:, 0]

    def advantages(kl_coef):
        reward = shape_rewards(score, kl, mask, kl_coef=kl_coef, sign=1, clip=1e9)
        cost = shape_rewards(2 * score, kl, mask, kl_coef=kl_coef, sign=-1, clip=1e9)
        shaped = gae(reward, values, mask, gamma=1.0, gae_lambda=0.95)[0]
        shaped_cost = gae(cost, -values, mask, gamma=1.0, gae_lambda=0.95)[0]
        return combined(shaped, shaped_cost, multiplier)

    zero = torch.zeros_like(kl)
    penalty = torch.where(mask, -0.3 * kl, 0.0)
    kl_alone, _ = gae(penalty, zero, mask, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(advantages(0.3) - advantages(0.0), kl_alone, rtol=1e-9, atol=1e-9)
