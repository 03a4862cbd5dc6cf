from __future__ import annotations

import math

import pytest
import torch

from equilibrate.config.fit import BfpoConfig
from equilibrate.models.log_probs import token_log_probs
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.preference.batches import AnswerBatch, SideCounts
from equilibrate.preference.policy_losses import (
    bfpo_labels,
    bfpo_loss,
    dpo_loss,
    masked_log_ratios,
    unlikelihood_loss,
)


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


TRL_LOSS = 0.650293231010437
"""Printed by tests/golden/dpo_from_trl.py with trl 1.12.0."""
SHAPE, LENGTHS, PROMPT, BETA = (4, 6, 7), (6, 5, 4, 6), 2, 0.3


def waves(frequency: float, token_ids: torch.Tensor) -> torch.Tensor:
    numbers = torch.arange(math.prod(SHAPE), dtype=torch.float64)
    return token_log_probs((2 * torch.sin(frequency * numbers)).float().view(SHAPE), token_ids)


def test_dpo_equals_trl():
    positions, lengths = torch.arange(SHAPE[1])[None], torch.tensor(LENGTHS)[:, None]
    token_ids = (3 * torch.arange(SHAPE[0])[:, None] + 5 * positions) % SHAPE[2]
    mask = (positions < lengths) & (positions >= PROMPT)
    sums = masked_log_ratios(
        waves(0.7, token_ids), waves(1.3, token_ids), mask, mask, mode="gradient"
    )
    loss = dpo_loss(*sums.chunk(2), beta=BETA, num_pairs=2)
    assert loss.item() == pytest.approx(TRL_LOSS, rel=1e-6)
