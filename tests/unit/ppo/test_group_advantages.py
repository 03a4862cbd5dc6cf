import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.ppo.group_advantages import grpo, reinforce_plus_plus, rloo

MASK = torch.tensor([[False, True, True], [False, True, False], [True, True, True]])
REWARDS = torch.tensor([[math.nan, 1.0, 2.0], [7.0, 1.0, 7.0], [0.0, 0.0, 5.0]])
"""Returns 3, 1 and 5; what lies outside the response does not count."""
GROUPS = torch.tensor([4, 4, 9])

seeds = st.integers(0, 10_000)


def random_batch(seed, rows=6, width=4):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=generator) < 0.7
    groups = torch.randint(3, (rows,), generator=generator)
    return rewards, mask, groups


def test_rloo_by_hand():
    # 3 - 1 = 2, 1 - 3 = -2; the third response has nobody to be compared with
    expected = torch.tensor([[0.0, 2.0, 2.0], [0.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(rloo(REWARDS, MASK, GROUPS), expected)


def test_rloo_of_three_by_hand():
    # 3 - (1 + 5) / 2 = 0, 1 - (3 + 5) / 2 = -3, 5 - (3 + 1) / 2 = 3
    advantages = rloo(REWARDS, MASK, torch.zeros(3, dtype=torch.int64))
    assert advantages.amax(1).tolist() == [0.0, 0.0, 3.0]
    assert advantages.amin(1).tolist() == [0.0, -3.0, 3.0]


def test_grpo_by_hand():
    # mean 2, standard deviation sqrt(1 + 1): +-1 / sqrt(2); alone: 0
    expected = torch.tensor([[0.0, 1.0, 1.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]) / math.sqrt(2)
    found = grpo(torch.tensor([3.0, 1.0, 5.0]), MASK, GROUPS)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equally_good_responses_give_exactly_nothing(size, dtype):
    mask, groups = torch.ones(size, 1, dtype=torch.bool), torch.zeros(size, dtype=torch.int64)
    for score in [*torch.linspace(-10, 10, 101, dtype=dtype), torch.tensor(123456.7, dtype=dtype)]:
        same = score.expand(size)
        assert not grpo(same, mask, groups).any()
        assert not rloo(same[:, None], mask, groups).any()
        assert not reinforce_plus_plus(same[:, None], mask, gamma=1.0).any()


def test_grpo_is_the_normalised_score_of_torch():
    scores = torch.tensor([[0.5, -1.0, 3.0, 0.25], [2.0, 2.5, -7.0, 1.0]], dtype=torch.float64)
    expected = (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)
    groups, mask = torch.arange(8) // 4, torch.ones(8, 1, dtype=torch.bool)
    torch.testing.assert_close(grpo(scores.flatten(), mask, groups)[:, 0], expected.flatten())


def test_reinforce_plus_plus_by_hand():
    # returns to go 3, 2 | 1 | 5, 5, 5: mean 3.5, variance (.25 + 2.25 + 6.25 + 3 x 2.25) / 6
    std = math.sqrt(15.5 / 6)
    expected = torch.tensor([[0.0, -0.5, -1.5], [0.0, -2.5, 0.0], [1.5, 1.5, 1.5]]) / std
    found = reinforce_plus_plus(REWARDS, MASK, gamma=1.0)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_reinforce_plus_plus_discounts():
    # returns to go with gamma 1/2: 2, 2 | 1 | 1.25, 2.5, 5; the largest is the last
    advantages = reinforce_plus_plus(REWARDS, MASK, gamma=0.5)
    assert float(advantages[0, 1]) == pytest.approx(float(advantages[0, 2]))
    assert advantages[2].tolist() == sorted(advantages[2].tolist())
    assert advantages.argmin() == 4


def test_no_response_at_all_gives_zeros():
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    assert not reinforce_plus_plus(REWARDS, nothing, gamma=1.0).any()
    assert not rloo(REWARDS, nothing, GROUPS).any()


@given(seeds)
def test_a_group_sums_to_zero_and_a_shift_of_it_changes_nothing(seed):
    rewards, mask, groups = random_batch(seed)
    first = torch.zeros_like(mask)
    first[:, 0] = True
    scores, shift = rewards[:, 0], groups.to(rewards.dtype)
    for estimate, signal, shifted in (
        (rloo, rewards, rewards + shift[:, None]),
        (grpo, scores, scores + shift),
    ):
        per_row = estimate(signal, first, groups)[:, 0]
        for group in groups.unique():
            assert float(per_row[groups == group].sum()) == pytest.approx(0.0, abs=1e-8)
        torch.testing.assert_close(estimate(shifted, first, groups)[:, 0], per_row)


@given(seeds)
def test_reinforce_plus_plus_is_whitened(seed):
    rewards, mask, _ = random_batch(seed)
    kept = reinforce_plus_plus(rewards, mask, gamma=0.9)[mask]
    if len(kept) > 1:
        assert float(kept.mean()) == pytest.approx(0.0, abs=1e-8)
        assert float(kept.std(correction=0)) == pytest.approx(1.0, abs=1e-2)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="groups"):
        rloo(REWARDS, MASK, GROUPS[:2])
    with pytest.raises(ValueError, match="response_mask"):
        reinforce_plus_plus(REWARDS, MASK[:, :2], gamma=1.0)
