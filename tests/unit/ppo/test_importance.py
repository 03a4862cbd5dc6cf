from __future__ import annotations

import math

import pytest
import torch

from equilibrate.ppo.importance import truncated_importance

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
