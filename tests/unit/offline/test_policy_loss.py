"""Masks, counts and loss of a batch of examples, with a policy whose log-probs are written down."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from equilibrate.config.files import parse_settings
from equilibrate.config.fit import AnswerMaskConfig, FitConfig
from equilibrate.data.sequences import Sequences
from equilibrate.errors import ConfigError
from equilibrate.offline.policy_loss import PolicyLoss, require_something_to_mask, summarise_masks
from equilibrate.offline.table import OWN_TOKEN, AnswerTable
from equilibrate.types import Category

CPU = torch.device("cpu")
LENGTHS = (3, 4, 4, 3)
"""Two pairs; every prompt is one token."""


def table(costs=(0.0, 0.0, 0.0, 0.0)) -> AnswerTable:
    """All tokens of an answer have one cost of the four given; rewards are 0."""
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    per_token = np.repeat(np.array(costs, np.float32), LENGTHS)
    return AnswerTable(
        sequences=Sequences(np.arange(starts[-1]) % 5, starts, np.ones(4, np.int64)),
        learn_starts=np.ones(4, np.int64),
        targets=np.full(4, OWN_TOKEN),
        sides=np.array([1, -1, 1, -1]),
        is_safe=np.array([True, False, True, True]),
        categories=np.array([list(Category).index(Category.EHD)] * 4),
        answers_per_example=2,
        scores={
            "token_rewards": np.zeros_like(per_token),
            "token_costs": per_token,
            "ref_log_probs": np.full_like(per_token, -1.0),
        },
    )


def objective(answers, **settings) -> PolicyLoss:
    tree = {"objective": {"type": "dpo", "nll_coef": 0.0}, "fdc": {"amounts": {"EHD": 1}}}
    return PolicyLoss(answers, parse_settings(FitConfig, tree | settings), CPU)


class Policy:
    """Log-prob of every token: -1 (the reference's), and 0.5 more in the first row of a pass."""

    def __call__(self, token_ids, mask, temperature, num_texts, targets):
        log_probs = torch.full(token_ids.shape, -1.0)
        log_probs[0] += 0.5
        return torch.where(mask, log_probs, 0.0), torch.zeros(token_ids.shape)


BOTH = np.array([0, 1])
BY_COST = {"source": "cost", "delta": False}


def test_without_a_mask_every_response_token_counts():
    masks = objective(table()).plan(BOTH)
    assert masks.gradient_mask.sum(1).tolist() == [2, 3, 3, 2]
    assert (masks.positive.tokens, masks.positive.learned) == (5, 5)
    assert (masks.negative.tokens, masks.negative.learned) == (5, 5)
    assert masks.num_examples == 2


def test_dpo_by_hand():
    # The first answer of two tokens: S_w = 2 * 0.5, S_l = 0; the other pair is the reference's.
    made = objective(table(), objective={"type": "dpo", "beta": 0.3, "nll_coef": 0.0})
    loss = made.loss(Policy(), made.plan(BOTH), BOTH)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-0.3)) + math.log(2)) / 2)


def test_parts_of_a_batch_add_up():
    made = objective(table())

    class Plain(Policy):
        def __call__(self, token_ids, mask, temperature, num_texts, targets):
            log_probs = -0.1 * (token_ids + 1).float()
            return torch.where(mask, log_probs, 0.0), torch.zeros(token_ids.shape)

    masks = made.plan(BOTH)
    whole = made.loss(Plain(), masks, BOTH)
    parts = [made.loss(Plain(), masks, np.array([place])) for place in (0, 1)]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item())


def test_a_mask_keeps_what_agrees_with_the_label():
    # Costs: the chosen answers are safe and unsafe, the rejected ones unsafe and safe.
    answers = table(costs=(-1.0, 1.0, 1.0, -1.0))
    masks = objective(answers, ama=BY_COST | {"when_empty": "skip"}).plan(BOTH)
    # In the second pair nothing agrees, so it is left out.
    assert masks.is_used.tolist() == [True, True, False, False]
    assert masks.gradient_mask.sum(1).tolist() == [2, 3, 0, 0]
    assert masks.num_examples == 1
    assert masks.positive.tokens == 2


def test_an_answer_that_keeps_nothing_is_used_whole():
    answers = table(costs=(-1.0, 1.0, 1.0, -1.0))
    masks = objective(answers, ama=BY_COST).plan(BOTH)
    assert masks.gradient_mask.sum(1).tolist() == [2, 3, 3, 2]
    assert masks.num_examples == 2


def falling(costs) -> AnswerTable:
    """Every token has its own cost: row by row, prompt and response."""
    answers = table()
    return replace(answers, scores=answers.scores | {"token_costs": np.array(costs, np.float32)})


MIXED = falling([*(0, -1, 1), *(0, 1, -1, 1), *(0, -1, -1, 1), *(0, 1, 1)])


def test_the_end_of_an_answer_to_learn_is_always_kept():
    masks = objective(MIXED, ama=BY_COST).plan(BOTH)
    kept = [row.nonzero().flatten().tolist() for row in masks.gradient_mask]
    # Of the chosen answers the safe tokens and the end, of the rejected ones the unsafe tokens.
    assert kept == [[1, 2], [1, 3], [1, 2, 3], [1, 2]]


def test_a_class_without_a_gate_is_not_masked():
    answers = table(costs=(1.0, -1.0, 1.0, -1.0))
    masks = objective(answers, ama=BY_COST | {"ungated": ["EHD"]}).plan(BOTH)
    assert masks.gradient_mask.sum(1).tolist() == [2, 3, 3, 2]


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"ungated": ["EHD"]}, "all EHD; try"),
        ({"ungated": ["GENERAL", "EHD"]}, "all EHD; try"),
        ({"ungated": []}, None),
        ({}, None),  # harmless classes alone
    ],
)
def test_a_mask_that_would_touch_nothing_is_refused(settings, answer):
    ama = AnswerMaskConfig(**settings)
    if answer is None:
        require_something_to_mask(table(), ama)
    else:
        with pytest.raises(ConfigError, match=answer):
            require_something_to_mask(table(), ama)


def test_the_loss_is_divided_by_kept_or_by_all_tokens():
    kept = objective(MIXED, ama=BY_COST).plan(BOTH)
    settings = BY_COST | {"normalizer": "all"}
    every = objective(MIXED, objective={"type": "ars"}, ama=settings).plan(BOTH)
    assert (kept.negative.learned, every.negative.learned) == (4, 5)


def test_a_random_control_keeps_exactly_as_many_tokens_and_is_fixed_by_the_seed():
    settings = BY_COST | {"random_control": True}
    drawn = [objective(MIXED, ama=settings, seed=seed).plan(BOTH) for seed in (0, 0, 1, 2, 3)]
    kept = int(objective(MIXED, ama=BY_COST).plan(BOTH).gradient_mask.sum())
    assert [int(masks.gradient_mask.sum()) for masks in drawn] == [kept] * 5
    assert torch.equal(drawn[0].gradient_mask, drawn[1].gradient_mask)
    assert len({str(masks.gradient_mask.tolist()) for masks in drawn}) > 1


def test_a_mean_baseline_is_that_of_the_whole_batch():
    answers = table(costs=(-3.0, 1.0, 1.0, 1.0))
    settings = BY_COST | {"baseline": "batch_mean", "when_empty": "skip"}
    # -r: mean of (3, 3, -1 x 8) is -0.2: the safe answer is above it, the others are below.
    whole = objective(answers, ama=settings).plan(BOTH)
    assert whole.gradient_mask.sum(1).tolist() == [2, 3, 0, 0]
    # Alone, the second pair lies at its own mean, which agrees with no side.
    alone = objective(answers, ama=settings).plan(np.array([1]))
    assert not alone.gradient_mask.any()


def test_an_answer_without_a_response_is_left_out_with_its_pair():
    answers = replace(table(), learn_starts=np.array([1, 4, 1, 1]))
    masks = objective(answers).plan(BOTH)
    assert masks.is_used.tolist() == [False, False, True, True]


def test_the_summary_counts_what_one_pass_over_the_data_learns_from():
    answers = table(costs=(-1.0, 1.0, 1.0, 1.0))
    summary = summarise_masks(objective(answers, ama=BY_COST), answers, batch_size=1)
    # All: 2 + 3 of the first pair, and of the second, whose chosen answer keeps nothing, 3 + 2.
    assert summary == {"examples": 2.0, "trained_tokens": 10.0, "kept_fraction": 1.0}
    mixed = summarise_masks(objective(MIXED, ama=BY_COST), MIXED, batch_size=2)
    assert mixed == {"examples": 2.0, "trained_tokens": 9.0, "kept_fraction": 0.9}


@pytest.mark.parametrize("mode", ["gradient", "forward"])
@pytest.mark.parametrize("nll_on", ["kept", "all"])
def test_a_masked_token_moves_nothing_unless_it_is_asked_for(mode, nll_on):
    """The gradient of the whole loss, cross entropy included, in the log-prob of each token."""
    seen = []

    def policy(token_ids, mask, temperature, num_texts, targets):
        seen.append(torch.full(token_ids.shape, -0.7, requires_grad=True))
        return torch.where(mask, seen[0], 0.0), torch.zeros(token_ids.shape)

    answers = falling([*(0, 1, -1), *(0, 1, -1, 1), *(0, -1, 1, 1), *(0, 1, -1)])
    asked = {"nll_on": "all"} if nll_on == "all" else {}
    made = objective(answers, objective={"type": "dpo", **asked}, ama=BY_COST | {"mode": mode})
    plan = made.plan(BOTH)
    made.loss(policy, plan, BOTH).backward()
    moved = [row.nonzero().flatten().tolist() for row in seen[0].grad]
    # Chosen, rejected, chosen, rejected: the mask takes a token out of each.
    kept = [[2], [1, 3], [1, 3], [1]]
    assert [row.nonzero().flatten().tolist() for row in plan.gradient_mask] == kept
    assert moved == (kept if nll_on == "kept" else [[1, 2], [1, 3], [1, 2, 3], [1]])
