from __future__ import annotations

import math

import pytest
import torch

from equilibrate.ppo.losses import clipped_policy_loss, policy_sums
from equilibrate.ppo.ratios import LOG_RATIO_LIMIT, log_ratios, truncated_importance

ALL = torch.tensor([[True]])


def test_below_the_limit_it_is_the_plain_difference():
    new, old = torch.tensor([[0.3, -19.9, math.nan]]), torch.tensor([[0.5, 0.0, 1.0]])
    found = log_ratios(new, old, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(found, torch.tensor([[0.3 - 0.5, -19.9, 0.0]]))


@pytest.mark.parametrize("log_ratio", [100.0, -100.0, 1e30, math.inf, -math.inf])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_a_huge_log_ratio_leaves_loss_and_gradient_finite(log_ratio, advantage):
    new, old = torch.tensor([[log_ratio]], requires_grad=True), torch.zeros(1, 1)
    loss = clipped_policy_loss(
        new, old, torch.tensor([[advantage]]), ALL, clip_range=0.2, num_tokens=1
    )
    loss.backward()
    assert loss.isfinite()
    assert new.grad.item() == 0.0
    sums = policy_sums(new, old, ALL, clip_range=0.2)
    assert sums.approx_kl.isfinite()
    assert sums.clipped == 1


def test_the_loss_of_a_huge_ratio_is_that_of_the_limit():
    # A = -1: min() keeps the unclipped branch, here e^20.
    loss = clipped_policy_loss(
        torch.tensor([[100.0]]),
        torch.zeros(1, 1),
        torch.tensor([[-1.0]]),
        ALL,
        clip_range=0.2,
        num_tokens=1,
    )
    assert loss.item() == pytest.approx(math.exp(LOG_RATIO_LIMIT))


def test_importance_weights_of_huge_log_ratios():
    old = torch.tensor([[1e30, -1e30, 1.0]])
    weights = truncated_importance(old, torch.zeros(1, 3), torch.ones(1, 3) > 0, cap=2.0)
    assert weights.tolist() == [[2.0, pytest.approx(math.exp(-LOG_RATIO_LIMIT)), 2.0]]


MASK = torch.tensor([[False, True, True, True]])


def test_weights_by_hand() -> None:
    # Twice as likely, half as likely, four times as likely but cut at 3; 1 outside the response.
    old = torch.tensor([[5.0, math.log(2.0), -math.log(2.0), math.log(4.0)]])
    weights = truncated_importance(old, torch.zeros(1, 4), MASK, cap=3.0)
    assert weights[0].tolist() == pytest.approx([1.0, 2.0, 0.5, 3.0])


def test_same_policy_weighs_one_and_nothing_outside_matters() -> None:
    log_probs = torch.tensor([[math.nan, -1.0, -2.0, -3.0]])
    weights = truncated_importance(log_probs, log_probs.clone(), MASK, cap=2.0)
    assert weights.tolist() == [[1.0, 1.0, 1.0, 1.0]]


def test_no_gradient_and_no_overflow() -> None:
    old = torch.tensor([[0.0, 1e4, 0.0, 0.0]], requires_grad=True)
    weights = truncated_importance(old, torch.zeros(1, 4), MASK, cap=2.0)
    assert not weights.requires_grad
    assert weights[0, 1] == 2.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="old_log_probs"):
        truncated_importance(torch.zeros(1, 3), torch.zeros(1, 4), MASK, cap=2.0)
