from __future__ import annotations

import pytest
import torch

from equilibrate.config.fit import BfpoConfig
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.preference.batches import AnswerBatch, SideCounts
from equilibrate.preference.bfpo import bfpo_labels, bfpo_loss

SAFE = torch.tensor([True, True, False, False])
OTHER_SAFE = torch.tensor([True, False, True, False])


def labels(**changes):
    return bfpo_labels(SAFE, OTHER_SAFE, **({"safety_weight": 3.0, "shift": 0.5} | changes))


def test_the_label_table():
    """Recomputed from the published code: (safe, safe), (safe, not), (not, safe), (not, not)."""
    assert labels().tolist() == [0.5, 1.0, -1.0, -0.5]


def test_the_shift_moves_all_labels_towards_the_less_helpful_answer():
    assert (labels(shift=1.0) - labels()).tolist() == [-0.5] * 4


def test_loss_by_hand():
    # leads 3 and -1 against 1 / 0.5 = 2 and -1 / 0.5 = -2: (1 + 1) / 2
    loss = bfpo_loss(
        torch.tensor([2.0, 0.0]),
        torch.tensor([-1.0, 1.0]),
        torch.tensor([1.0, -1.0]),
        tau=0.5,
        num_pairs=2,
    )
    assert loss.item() == pytest.approx(1.0)


def test_gradient_by_hand():
    better = torch.tensor([1.0], requires_grad=True)
    bfpo_loss(better, torch.tensor([0.0]), torch.tensor([0.5]), tau=1.0, num_pairs=1).backward()
    # 2 (h - g / tau) = 2 (1 - 0.5)
    assert better.grad.item() == pytest.approx(1.0)


def test_two_safe_answers_are_those_of_ipo():
    lead, tau = torch.tensor([0.7]), 0.1
    loss = bfpo_loss(lead, torch.zeros(1), labels()[:1], tau=tau, num_pairs=1)
    assert loss.item() == pytest.approx((0.7 - 1 / (2 * tau)) ** 2)


def test_the_objective_reads_the_safety_of_each_answer():
    columns = {
        "prompt": ["p"],
        "response_0": ["a"],
        "response_1": ["b"],
        "better_response_id": [1],
        "preferred_response_id": [0],
        "is_response_0_safe": [True],
        "is_response_1_safe": [False],
    }
    answers = OBJECTIVES["bfpo"].view(columns, BfpoConfig(), 0)
    # By helpfulness, whatever is preferred on the whole.
    assert [(answer.response, answer.is_safe) for answer in answers] == [("b", False), ("a", True)]
    batch = AnswerBatch(
        log_probs=torch.zeros(2, 1),
        log_ratios=torch.tensor([0.5, 0.25]),
        response_mask=torch.ones(2, 1, dtype=torch.bool),
        gradient_mask=torch.ones(2, 1, dtype=torch.bool),
        sides=torch.tensor([1.0, -1.0]),
        is_safe=torch.tensor([answer.is_safe for answer in answers]),
        is_used=torch.tensor([True, True]),
        num_examples=1,
        positive=SideCounts(tokens=1, learned=1),
        negative=SideCounts(tokens=1, learned=1),
    )
    loss = OBJECTIVES["bfpo"].loss(batch, BfpoConfig(tau=0.5))
    # The helpful one is harmful: label -1, target -2, lead 0.25.
    assert loss.item() == pytest.approx(2.25**2)
