from __future__ import annotations

import math

import pytest
import torch

from equilibrate.preference.policy_losses import dpo_loss, masked_log_ratios, unlikelihood_loss


def ratios(mode, gradient_mask, log_probs=None):
    """One answer of three tokens, D = (1, -2, 4), and one of padding that holds nan."""
    if log_probs is None:
        log_probs = torch.tensor([[1.0, -2.0, 4.0, math.nan]])
    return masked_log_ratios(
        log_probs,
        torch.tensor([[0.0, 0.0, 0.0, math.nan]]),
        torch.tensor([[True, True, True, False]]),
        torch.tensor([gradient_mask]),
        mode=mode,
    )


@pytest.mark.parametrize(
    ("mode", "mask", "expected"),
    [
        ("forward", [True, True, True, False], 3.0),
        ("forward", [True, False, True, False], 5.0),
        ("forward", [False, False, False, False], 0.0),
        ("gradient", [True, False, True, False], 3.0),
        ("gradient", [False, False, False, False], 3.0),
    ],
)
def test_log_ratios_by_hand(mode, mask, expected):
    assert ratios(mode, mask).tolist() == [expected]


@pytest.mark.parametrize("mode", ["forward", "gradient"])
def test_only_kept_tokens_get_a_gradient(mode):
    log_probs = torch.tensor([[1.0, -2.0, 4.0, math.nan]], requires_grad=True)
    ratios(mode, [True, False, True, False], log_probs).sum().backward()
    assert log_probs.grad.tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_log_ratios_refuse_other_shapes():
    ones = torch.ones(1, 2)
    with pytest.raises(ValueError, match="ref_log_probs"):
        masked_log_ratios(ones, torch.ones(1, 3), ones.bool(), ones.bool(), mode="forward")


def test_dpo_knows_nothing_at_the_reference():
    nothing = torch.zeros(4)
    loss = dpo_loss(nothing, nothing, beta=0.3, num_pairs=4)
    assert loss.item() == pytest.approx(math.log(2))


def test_dpo_by_hand():
    # beta (S_w - S_l) = 0.5 * (3 - 1) = 1 and 0.5 * (0 - 4) = -2: log(1 + e^-1), log(1 + e^2)
    loss = dpo_loss(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 4.0]), beta=0.5, num_pairs=2)
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2
    assert loss.item() == pytest.approx(expected)


def test_dpo_gradient_is_the_doubt_in_the_pair():
    # d/dS_w = -beta sigma(-beta (S_w - S_l)), and the opposite for S_l
    chosen = torch.tensor([2.0], requires_grad=True)
    rejected = torch.tensor([1.0], requires_grad=True)
    dpo_loss(chosen, rejected, beta=0.1, num_pairs=1).backward()
    doubt = 0.1 / (1 + math.exp(0.1))
    assert chosen.grad.item() == pytest.approx(-doubt)
    assert rejected.grad.item() == pytest.approx(doubt)


def test_dpo_does_not_overflow():
    loss = dpo_loss(torch.tensor([-1e6]), torch.tensor([1e6]), beta=1.0, num_pairs=1)
    assert loss.item() == pytest.approx(2e6)


def test_dpo_of_a_share_is_divided_by_the_whole_batch():
    chosen, rejected = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0.0, 3.0, 1.0])
    whole = dpo_loss(chosen, rejected, beta=0.2, num_pairs=3)
    parts = [dpo_loss(chosen[i], rejected[i], beta=0.2, num_pairs=3) for i in ([0], [1, 2])]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item())


def test_dpo_of_no_pair_is_zero():
    assert dpo_loss(torch.zeros(0), torch.zeros(0), beta=0.1, num_pairs=0).item() == 0.0


def test_unlikelihood_by_hand():
    # p = 1/2 and 1/4: -log(1/2) - log(3/4); the masked token holds nan
    log_probs = torch.tensor([[math.log(0.5), math.log(0.25), math.nan]])
    loss = unlikelihood_loss(log_probs, torch.tensor([[True, True, False]]), num_tokens=2)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_unlikelihood_pushes_down_and_stays_finite():
    log_probs = torch.tensor([[math.log(0.5), 0.0, math.nan]], requires_grad=True)
    loss = unlikelihood_loss(log_probs, torch.tensor([[True, True, False]]), num_tokens=1)
    loss.backward()
    assert math.isfinite(loss.item())
    # -log(1 - p) by log p: p / (1 - p) = 1
    assert log_probs.grad[0, 0].item() == pytest.approx(1.0)
    assert log_probs.grad.isfinite().all()


def test_unlikelihood_of_nothing_is_zero():
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    assert unlikelihood_loss(torch.zeros(1, 2), nothing, num_tokens=0).item() == 0.0
