import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.ama.signals import (
    baseline_sums,
    batch_mean,
    constant,
    response_signal,
    sequence_mean,
    steps,
    token_signal,
)

# one prompt token, three response tokens, padding
MASK = torch.tensor([[False, True, True, True, False]])
REWARDS = torch.tensor([[1.0, 2.0, 5.0, 4.0, 99.0]])
COSTS = torch.tensor([[-1.0, 0.0, 2.0, -2.0, 99.0]])
VALUES = torch.tensor([[7.0, 1.5, 2.5, 4.5, 99.0]])
COST_VALUES = torch.tensor([[7.0, -0.5, 0.5, 1.5, 99.0]])


def signal(source, delta, mask=MASK, multiplier=3.0, **changes):
    arguments = {
        "token_rewards": REWARDS,
        "token_costs": COSTS,
        "values": VALUES,
        "cost_values": COST_VALUES,
        **changes,
    }
    return token_signal(
        source, delta=delta, multiplier=multiplier, response_mask=mask, **arguments
    ).tolist()[0]


def test_prefix_scores_by_hand():
    assert signal("reward", delta=False) == [0, 2, 5, 4, 0]
    assert signal("cost", delta=False) == [0, 0, -2, 2, 0]
    # (2 - 0) / 4, (5 - 6) / 4, (4 + 6) / 4
    assert signal("both", delta=False) == [0, 0.5, -0.25, 2.5, 0]


def test_steps_start_from_the_last_prompt_token():
    assert signal("reward", delta=True) == [0, 1, 3, -1, 0]
    assert signal("cost", delta=True) == [0, -1, -2, 4, 0]
    # (dR - 3 dC) / 4: (1 - 3) / 4, (3 - 6) / 4, (-1 + 12) / 4
    assert signal("both", delta=True) == [0, -0.5, -0.75, 2.75, 0]


def test_critics_speak_about_the_prefix_that_ends_at_the_token():
    # the value before token t + 1 is the value after t: (2.5 - 3 * .5) / 4, (4.5 - 3 * 1.5) / 4;
    # after the last token the scores themselves: (4 + 6) / 4
    assert signal("critics", delta=False) == [0, 0.25, 0, 2.5, 0]
    # before the first token: (1.5 + 1.5) / 4 = .75
    assert signal("critics", delta=True) == [0, -0.5, -0.25, 2.5, 0]


def test_steps_of_a_response_sum_to_the_change_of_its_score():
    assert sum(signal("both", delta=True)) == pytest.approx((4 + 6) / 4 - (1 + 3) / 4)


def test_a_foreign_token_takes_its_own_credit_with_it():
    mask = torch.tensor([[False, True, False, True, False]])
    assert signal("reward", delta=True, mask=mask) == [0, 1, 0, -1, 0]


def test_multiplier_zero_leaves_the_reward():
    assert signal("both", delta=True, multiplier=0.0) == signal("reward", delta=True)


@pytest.mark.parametrize("source", ["reward", "cost", "both", "critics"])
@pytest.mark.parametrize("delta", [True, False])
def test_padding_may_hold_nan(source, delta):
    dirty = {
        name: torch.where(torch.arange(5) < 4, tensor, math.nan)
        for name, tensor in (
            ("token_rewards", REWARDS),
            ("token_costs", COSTS),
            ("values", VALUES),
            ("cost_values", COST_VALUES),
        )
    }
    assert signal(source, delta, **dirty) == signal(source, delta)


def test_signal_carries_no_gradient():
    rewards = REWARDS.clone().requires_grad_()
    out = token_signal(
        "reward",
        delta=True,
        token_rewards=rewards,
        token_costs=COSTS,
        values=VALUES,
        cost_values=COST_VALUES,
        multiplier=1.0,
        response_mask=MASK,
    )
    assert not out.requires_grad


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="shapes must be equal"):
        signal("both", delta=True, token_rewards=REWARDS[:, 1:])
    with pytest.raises(ValueError, match="shapes must be equal"):
        response_signal("both", reward=torch.zeros(2), cost=torch.zeros(3), multiplier=1.0)


@pytest.mark.parametrize(
    ("source", "expected"), [("reward", 4.0), ("cost", 2.0), ("both", 2.5), ("critics", 2.5)]
)
def test_response_signal_by_hand(source, expected):
    # R 4, C -2, lambda 3: (4 + 6) / 4
    out = response_signal(
        source, reward=torch.tensor([4.0]), cost=torch.tensor([-2.0]), multiplier=3.0
    )
    assert out.tolist() == [expected]


def test_steps_are_zero_in_the_first_column():
    assert steps(torch.tensor([[3.0, 5.0, 4.0]])).tolist() == [[0, 2, -1]]


SIGNAL = torch.tensor([[1.0, math.nan, 4.0], [-2.0, 7.0, 9.0]])
KEPT = torch.tensor([[True, False, True], [True, False, False]])


def test_constant_broadcasts():
    assert constant(SIGNAL, 0.5).tolist() == [[0.5]]


def test_batch_mean_by_hand():
    total, count = baseline_sums(SIGNAL, KEPT)
    assert (total.item(), count.item()) == (3.0, 3.0)
    assert batch_mean(total, count, SIGNAL).tolist() == [[1.0]]  # (1 + 4 - 2) / 3


@given(st.integers(0, 999), st.integers(1, 5))
def test_batch_mean_is_the_same_on_any_number_of_ranks(seed, num_ranks):
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(6, 4, generator=generator)
    mask = torch.rand(6, 4, generator=generator) < 0.5
    parts = [baseline_sums(signal[r::num_ranks], mask[r::num_ranks]) for r in range(num_ranks)]
    total, count = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    whole = batch_mean(*baseline_sums(signal, mask), signal)
    assert torch.equal(batch_mean(total, count, signal), whole)


def test_sequence_mean_by_hand():
    assert sequence_mean(SIGNAL, KEPT).tolist() == [[2.5], [-2.0]]


def test_nothing_kept_gives_zero():
    empty = torch.zeros_like(KEPT)
    assert batch_mean(*baseline_sums(SIGNAL, empty), SIGNAL).tolist() == [[0.0]]
    assert sequence_mean(SIGNAL, empty).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("function", [baseline_sums, sequence_mean])
def test_shapes_of_baselines_are_checked(function):
    with pytest.raises(ValueError, match="shapes must be equal"):
        function(SIGNAL, KEPT[:1])
