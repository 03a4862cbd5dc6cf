import math

import pytest
import torch

from equilibrate.ppo.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    policy_sums,
    ptx_loss,
    tokens_by_sequence,
)

HOLES = torch.tensor([[True, False, True], [False, True, False]])
NUM_KEPT = 3
GOOD = torch.tensor([[0.3, 0.0, -0.2], [0.0, 0.1, 0.0]], dtype=torch.float64)
ZERO = torch.zeros_like(GOOD)


def policy(x, mask=HOLES, num_tokens=NUM_KEPT, constants=1.0):
    advantages = torch.tensor([[1.0, 5.0, -2.0], [7.0, 3.0, 1.0]], dtype=torch.float64) * constants
    return clipped_policy_loss(
        x, ZERO * constants, advantages, mask, clip_range=0.2, num_tokens=num_tokens
    )


def value(x, mask=HOLES, num_tokens=NUM_KEPT, constants=1.0):
    returns = torch.tensor([[2.0, 1.0, 0.5], [0.0, -1.0, 4.0]], dtype=torch.float64) * constants
    return clipped_value_loss(
        x, ZERO * constants, returns, mask, value_clip_range=0.15, num_tokens=num_tokens
    )


def ptx(x, mask=HOLES, num_tokens=NUM_KEPT, constants=1.0):
    return ptx_loss(x, mask, num_tokens=num_tokens)


every_loss = pytest.mark.parametrize("loss", [policy, value, ptx])


# clip_range 0.2
@pytest.mark.parametrize(
    ("new", "old", "advantage", "expected"),
    [
        (1.0, 0.0, +1.0, -1.2),  # ratio e, clipped at 1.2
        (0.0, 1.0, +1.0, -math.exp(-1)),  # ratio 1/e, min() keeps the unclipped branch
        (1.0, 0.0, -1.0, math.e),  # ratio e, negative advantage: min() keeps the unclipped branch
        (0.0, 1.0, -1.0, 0.8),  # clipped at 0.8
        (0.0, 0.0, +3.0, -3.0),  # ratio 1: minus the advantage
    ],
)
def test_clipped_policy_loss_by_hand(new, old, advantage, expected):
    loss = clipped_policy_loss(
        torch.tensor([[new]]),
        torch.tensor([[old]]),
        torch.tensor([[advantage]]),
        torch.tensor([[True]]),
        clip_range=0.2,
        num_tokens=1,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("new", "advantage", "moves"),
    [(1.0, 1.0, False), (1.0, -1.0, True), (-1.0, 1.0, True), (-1.0, -1.0, False)],
)
def test_policy_gradient_stops_where_the_clip_binds(new, advantage, moves):
    log_probs = torch.tensor([[new]], requires_grad=True)
    clipped_policy_loss(
        log_probs,
        torch.tensor([[0.0]]),
        torch.tensor([[advantage]]),
        torch.tensor([[True]]),
        clip_range=0.2,
        num_tokens=1,
    ).backward()
    # unclipped: d/dx -A exp(x) = -A exp(x)
    assert log_probs.grad.item() == pytest.approx(-advantage * math.exp(new) if moves else 0.0)


@pytest.mark.parametrize(
    ("new", "old", "target", "expected"),
    [
        (3.0, 1.0, 0.0, 4.5),  # |3 - 1| <= 5: 0.5 * 3^2
        (9.0, 1.0, 8.0, 2.0),  # clipped to 6: 0.5 * max(1, 4)
        (9.0, 1.0, 2.0, 24.5),  # clipped to 6: 0.5 * max(49, 16)
        (-9.0, 1.0, -8.0, 8.0),  # clipped to -4: 0.5 * max(1, 16)
    ],
)
def test_clipped_value_loss_by_hand(new, old, target, expected):
    loss = clipped_value_loss(
        torch.tensor([[new]]),
        torch.tensor([[old]]),
        torch.tensor([[target]]),
        torch.tensor([[True]]),
        value_clip_range=5.0,
        num_tokens=1,
    )
    assert loss.item() == pytest.approx(expected)


def test_value_loss_inside_the_clip_range_is_plain_mse_over_two():
    generator = torch.Generator().manual_seed(0)
    old, returns = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    values = old + 5 * (2 * torch.rand(4, 6, generator=generator, dtype=torch.float64) - 1)
    mask = torch.ones(4, 6, dtype=torch.bool)
    loss = clipped_value_loss(values, old, returns, mask, value_clip_range=5.0, num_tokens=24)
    torch.testing.assert_close(loss, 0.5 * torch.nn.functional.mse_loss(values, returns))


def test_ptx_loss_is_the_mean_negative_log_prob_of_kept_tokens():
    log_probs = torch.tensor([[0.0, -1.0, -2.0], [0.0, -6.0, -9.0]])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    assert ptx_loss(log_probs, mask, num_tokens=3).item() == 3.0  # (1 + 2 + 6) / 3


@every_loss
def test_nothing_outside_the_mask_matters_nan_and_inf_included(loss):
    clean = GOOD.clone().requires_grad_()
    expected = loss(clean)
    expected.backward()
    for junk in (math.nan, math.inf, -math.inf, 1e30):
        dirty = torch.where(HOLES, GOOD, junk).requires_grad_()
        constants = torch.where(HOLES, 1.0, junk)
        value = loss(dirty, constants=constants)
        value.backward()
        assert value.item() == expected.item()
        assert torch.equal(dirty.grad, clean.grad)
        assert torch.all(dirty.grad[~HOLES] == 0)


@every_loss
def test_sum_over_shards_is_the_loss_of_the_batch(loss):
    whole = GOOD.clone().requires_grad_()
    loss(whole).backward()
    split = GOOD.clone().requires_grad_()
    parts = [
        loss(split, mask=HOLES & torch.tensor([[True], [False]])),
        loss(split, mask=HOLES & torch.tensor([[False], [True]])),
    ]
    sum(parts).backward()
    torch.testing.assert_close(sum(parts), loss(whole))
    torch.testing.assert_close(split.grad, whole.grad)


@every_loss
def test_gradient_agrees_with_finite_differences(loss):
    assert torch.autograd.gradcheck(loss, GOOD.clone().requires_grad_())


@every_loss
def test_empty_mask_gives_zero_loss_and_zero_gradient(loss):
    log_probs = torch.full_like(GOOD, math.nan).requires_grad_()
    result = loss(log_probs, mask=torch.zeros_like(HOLES), num_tokens=0)
    result.backward()
    assert result.item() == 0.0
    assert torch.all(log_probs.grad == 0)


@every_loss
def test_shapes_must_agree(loss):
    with pytest.raises(ValueError, match="shapes must be equal"):
        loss(GOOD, mask=HOLES[:1])


def test_normaliser_is_the_global_count_not_the_mean_of_means():
    # one rank holds 5 tokens of loss 5, another 1 token of loss -3: (5 * 5 - 3) / 6, not 1
    first, second = torch.full((1, 5), -5.0), torch.full((1, 1), 3.0)
    total = ptx_loss(first, first < 0, num_tokens=6) + ptx_loss(second, second > 0, num_tokens=6)
    assert total.item() == pytest.approx(22 / 6)


def test_policy_sums_by_hand():
    log_probs = torch.tensor([[math.log(1.5), math.log(1.1), math.nan, math.log(0.7)]])
    mask = torch.tensor([[True, True, False, True]])
    sums = policy_sums(log_probs, torch.zeros(1, 4), mask, clip_range=0.2)
    assert sums.clipped.item() == 2  # 1.5 and 0.7 left [0.8, 1.2]
    # sum of ratio - 1 - log ratio
    by_hand = (0.5 - math.log(1.5)) + (0.1 - math.log(1.1)) + (-0.3 - math.log(0.7))
    assert sums.approx_kl.item() == pytest.approx(by_hand, rel=1e-5)


def test_policy_sums_of_an_empty_mask_are_zero():
    sums = policy_sums(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2) > 0, clip_range=0.2)
    assert [x.item() for x in sums] == [0, 0]


def by_sequence(mask, num_sequences=None):
    return tokens_by_sequence(mask.sum(1), len(mask) if num_sequences is None else num_sequences)


def test_mean_over_sequences_by_hand():
    # Ratio 1: minus the advantages. Rows of 2, 1 and 0 tokens: ((1 + 3) / 2 + 8 + 0) / 3 = 10 / 3
    mask = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    advantages = torch.tensor([[-1.0, 9.0, -3.0], [9.0, -8.0, 9.0], [9.0, 9.0, 9.0]])
    zeros = torch.zeros(3, 3)
    loss = clipped_policy_loss(
        zeros, zeros, advantages, mask, clip_range=0.2, num_tokens=by_sequence(mask)
    )
    assert loss.item() == pytest.approx(10 / 3)


def masked_mean(x, mask):
    """Of each sequence, then of the batch, as PKU-Alignment/safe-rlhf defines it."""
    return ((x * mask).sum(dim=-1) / mask.sum(dim=-1)).mean()


def test_means_over_sequences_are_those_of_safe_rlhf():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 7, 3, 10, 2])
    mask = torch.arange(10)[None] < lengths[:, None]
    new, old, advantages = torch.randn(3, 5, 10, generator=generator, dtype=torch.float64)
    ratio = (new - old).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    loss = clipped_policy_loss(
        new, old, advantages, mask, clip_range=0.2, num_tokens=by_sequence(mask)
    )
    torch.testing.assert_close(loss, -masked_mean(surrogate, mask))
    clipped = old + (new - old).clamp(-0.5, 0.5)
    errors = torch.maximum((new - advantages) ** 2, (clipped - advantages) ** 2)
    loss = clipped_value_loss(
        new, old, advantages, mask, value_clip_range=0.5, num_tokens=by_sequence(mask)
    )
    torch.testing.assert_close(loss, 0.5 * masked_mean(errors, mask))


@pytest.mark.parametrize("loss", [policy, value])
def test_shards_add_up_to_the_mean_over_sequences(loss):
    whole = loss(GOOD, num_tokens=by_sequence(HOLES))
    first, second = (HOLES & torch.tensor([[row == 0], [row == 1]]) for row in (0, 1))
    parts = [loss(GOOD, mask=m, num_tokens=by_sequence(m, 2)) for m in (first, second)]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("loss", [policy, value])
def test_rows_of_one_length_have_one_mean(loss):
    mask = torch.tensor([[True, True, False], [False, True, True]])
    by_tokens, by_rows = (loss(GOOD, mask=mask, num_tokens=n) for n in (4, by_sequence(mask)))
    torch.testing.assert_close(by_tokens, by_rows)


def test_an_empty_mask_has_a_mean_over_sequences_of_zero():
    nothing = torch.zeros_like(HOLES)
    log_probs = torch.full_like(GOOD, math.nan).requires_grad_()
    result = policy(log_probs, mask=nothing, num_tokens=by_sequence(nothing, 0))
    result.backward()
    assert result.item() == 0.0
    assert torch.all(log_probs.grad == 0)
