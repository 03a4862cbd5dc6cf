import math

import pytest
import torch

from equilibrate.preference.losses import (
    sft_loss,
    token_cost_loss,
    token_reward_loss,
    token_sign_loss,
)

SPAN = torch.tensor([[False, True, True], [False, True, False]])
OTHER = torch.tensor([[0.5, -0.3, 0.2], [1.0, 0.4, -0.6]], dtype=torch.float64)
GOOD = torch.tensor([[0.3, 0.7, -0.2], [0.0, 0.1, 0.6]], dtype=torch.float64)
SAFER_SIGN = torch.tensor([-1.0, 1.0], dtype=torch.float64)
UNSAFER_SIGN = torch.tensor([1.0, 1.0], dtype=torch.float64)
MU = 0.1


def better_side(x, span=SPAN, num_pairs=2, constants=1.0):
    return token_reward_loss(x, OTHER * constants, span, regularization=MU, num_pairs=num_pairs)


def worse_side(x, span=SPAN, num_pairs=2, constants=1.0):
    return token_reward_loss(OTHER * constants, x, span, regularization=MU, num_pairs=num_pairs)


def safer_side(x, span=SPAN, num_pairs=2, constants=1.0):
    signs = SAFER_SIGN[: len(x)], UNSAFER_SIGN[: len(x)]
    return token_cost_loss(
        x, OTHER * constants, *signs, span, regularization=MU, num_pairs=num_pairs
    )


def unsafer_side(x, span=SPAN, num_pairs=2, constants=1.0):
    signs = SAFER_SIGN[: len(x)], UNSAFER_SIGN[: len(x)]
    return token_cost_loss(
        OTHER * constants, x, *signs, span, regularization=MU, num_pairs=num_pairs
    )


def demonstrations(x, span=SPAN, num_pairs=2, constants=1.0):
    return sft_loss(x, span, num_tokens=num_pairs)


def single_labels(x, span=SPAN, num_pairs=2, constants=1.0):
    signs = UNSAFER_SIGN[: len(x)] * SAFER_SIGN[: len(x)]
    return token_sign_loss(x, signs, span, regularization=MU, num_answers=num_pairs)


every_loss = pytest.mark.parametrize(
    "loss", [better_side, worse_side, safer_side, unsafer_side, demonstrations, single_labels]
)


def nll(x):
    """-log sigma(x)"""
    return math.log1p(math.exp(-x))


def rewards(better, worse, mu=0.0):
    """Of end scores alone: a span of one column."""
    better, worse = torch.tensor(better)[:, None], torch.tensor(worse)[:, None]
    span = torch.ones_like(better, dtype=torch.bool)
    return token_reward_loss(better, worse, span, regularization=mu, num_pairs=len(better)).item()


def costs(safer, unsafer, signs, mu=0.0):
    safer, unsafer = torch.tensor(safer)[:, None], torch.tensor(unsafer)[:, None]
    span = torch.ones_like(safer, dtype=torch.bool)
    signs = [torch.tensor(sign) for sign in signs]
    return token_cost_loss(
        safer, unsafer, *signs, span, regularization=mu, num_pairs=len(safer)
    ).item()


def test_reward_loss_by_hand():
    # mean of -log sigma(3 - 1), -log sigma(0 - 1), plus .1 * mean of 9, 1, 0, 1
    expected = (nll(2) + nll(-1)) / 2 + 0.1 * 11 / 4
    assert rewards([3.0, 0.0], [1.0, 1.0], mu=0.1) == pytest.approx(expected, rel=1e-6)


def test_reward_loss_of_equal_scores_is_log_two():
    assert rewards([2.0], [2.0]) == pytest.approx(math.log(2), rel=1e-6)


def test_cost_loss_of_zero_scores_is_three_log_two():
    assert costs([0.0, 0.0], [0.0, 0.0], ([-1.0, 1.0], [1.0, 1.0])) == pytest.approx(
        3 * math.log(2)
    )


def test_cost_loss_by_hand():
    # safe -2, unsafe 1: order 3, signs 2 and 1; mean square (4 + 1) / 2
    expected = nll(3) + nll(2) + nll(1) + 0.1 * 2.5
    assert costs([-2.0], [1.0], ([-1.0], [1.0]), mu=0.1) == pytest.approx(expected, rel=1e-6)


def test_the_safer_of_two_unsafe_responses_is_pulled_above_zero():
    # both unsafe, safer 1, unsafer 3: order 2, signs 1 and 3
    expected = nll(2) + nll(1) + nll(3)
    assert costs([1.0], [3.0], ([1.0], [1.0])) == pytest.approx(expected, rel=1e-6)


def test_perfect_separation_brings_the_cost_loss_to_zero():
    assert costs([-50.0], [50.0], ([-1.0], [1.0])) == pytest.approx(0.0, abs=1e-6)


def test_flipping_signs_and_costs_leaves_the_sign_terms():
    # equal costs: the pair term is log 2 either way
    one = costs([0.7], [0.7], ([-1.0], [1.0]))
    assert costs([-0.7], [-0.7], ([1.0], [-1.0])) == pytest.approx(one)


def test_token_losses_average_positions_first_and_pairs_second():
    better = torch.tensor([[9.0, 2.0, 4.0], [9.0, 1.0, 9.0]])
    zero = torch.zeros(2, 3)
    loss = token_reward_loss(better, zero, SPAN, regularization=0.0, num_pairs=2)
    # pair 0: mean over scores 2 and 4; pair 1: score 1
    assert loss.item() == pytest.approx(((nll(2) + nll(4)) / 2 + nll(1)) / 2, rel=1e-6)


def test_token_cost_loss_by_hand():
    safer = torch.tensor([[9.0, -1.0, -2.0], [9.0, 1.0, 9.0]])
    unsafer = torch.tensor([[9.0, 1.0, 2.0], [9.0, 2.0, 9.0]])
    signs = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 1.0])
    loss = token_cost_loss(safer, unsafer, *signs, SPAN, regularization=0.0, num_pairs=2)
    # pair 0 at (-1, 1): order 2, signs 1, 1; at (-2, 2): order 4, signs 2, 2
    # pair 1 at (1, 2): order 1, signs 1, 2
    first = (nll(2) + 2 * nll(1) + nll(4) + 2 * nll(2)) / 2
    second = nll(1) + nll(1) + nll(2)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_constant_scores_make_token_wise_and_sequence_wise_equal():
    a, b = [0.3, -0.2], [0.1, 0.9]
    signs = [-1.0, 1.0], [1.0, 1.0]
    wide = {"regularization": MU, "num_pairs": 2}
    spread = [torch.tensor(scores)[:, None].expand(2, 3) for scores in (a, b)]
    loss = token_reward_loss(*spread, SPAN, **wide)
    assert loss.item() == pytest.approx(rewards(a, b, mu=MU))
    loss = token_cost_loss(*spread, *map(torch.tensor, signs), SPAN, **wide)
    assert loss.item() == pytest.approx(costs(a, b, signs, mu=MU))


def test_sft_loss_by_hand():
    log_probs = torch.tensor([[0.0, -1.0, -2.0], [0.0, -6.0, -9.0]])
    assert sft_loss(log_probs, SPAN, num_tokens=3).item() == 3.0  # (1 + 2 + 6) / 3


@every_loss
def test_nothing_outside_the_span_matters_nan_and_inf_included(loss):
    clean = GOOD.clone().requires_grad_()
    expected = loss(clean)
    expected.backward()
    for junk in (math.nan, math.inf, -math.inf):
        dirty = torch.where(SPAN, GOOD, junk).requires_grad_()
        value = loss(dirty, constants=torch.where(SPAN, 1.0, junk))
        value.backward()
        assert value.item() == expected.item()
        assert torch.equal(dirty.grad, clean.grad)
        assert torch.all(dirty.grad[~SPAN] == 0)


@every_loss
def test_sum_over_shards_of_pairs_is_the_loss_of_the_batch(loss):
    whole = GOOD.clone().requires_grad_()
    loss(whole).backward()
    split = GOOD.clone().requires_grad_()
    # dropping a pair's span takes the pair out, as another shard would
    parts = [loss(split, span=SPAN & torch.tensor([[k], [not k]])) for k in (True, False)]
    sum(parts).backward()
    torch.testing.assert_close(sum(parts), loss(whole))
    torch.testing.assert_close(split.grad, whole.grad)


@every_loss
def test_gradient_agrees_with_finite_differences(loss):
    assert torch.autograd.gradcheck(loss, GOOD.clone().requires_grad_())


@every_loss
def test_empty_span_gives_zero_loss_and_zero_gradient(loss):
    scores = torch.full_like(GOOD, math.nan).requires_grad_()
    result = loss(scores, span=torch.zeros_like(SPAN), num_pairs=0)
    result.backward()
    assert result.item() == 0.0
    assert torch.all(scores.grad == 0)


@every_loss
def test_shapes_must_agree(loss):
    with pytest.raises(ValueError, match="shapes must be equal"):
        loss(GOOD, span=SPAN[:, 1:])


def test_one_sign_per_pair_is_required():
    with pytest.raises(ValueError, match="shapes must be equal"):
        costs([0.0, 0.0], [0.0, 0.0], ([-1.0], [1.0]))


def test_sign_terms_by_hand():
    """An unsafe answer with 1 and 3 on its two tokens, and a safe one with 2 on its only one."""
    scores = torch.tensor([[1.0, 3.0], [2.0, math.nan]], dtype=torch.float64)
    span = torch.tensor([[True, True], [True, False]])
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    loss = token_sign_loss(scores, signs, span, regularization=0.1, num_answers=2)
    unsafe = (nll(1.0) + nll(3.0)) / 2 + 0.1 / 2 * (1.0 + 9.0) / 2
    assert loss.item() == pytest.approx((unsafe + nll(-2.0) + 0.1 / 2 * 4.0) / 2, rel=1e-12)
