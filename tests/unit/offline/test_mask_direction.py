"""Cosine and length of masked gradients, with a policy whose gradient can be written down."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.data.sequences import Sequences
from equilibrate.errors import ConfigError, DataError
from equilibrate.offline.mask_direction import compare_masks, mask_directions, masked_examples
from equilibrate.offline.table import OWN_TOKEN, AnswerTable
from equilibrate.types import Category

LENGTHS = (3, 4, 4, 3)
"""Two pairs; every prompt is one token, no token comes twice."""
COSTS = (*(0, -1, 1), *(0, 1, -1, 1), *(0, -1, -1, 1), *(0, 1, 1))
"""A chosen token agrees with a cost below 0, a rejected one with a cost above it."""
BOTH = np.array([0, 1])


class OneWeightPerToken(nn.Module):
    """log pi(token) = -1 + w[token]: where w is 0 the policy is the reference."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(sum(LENGTHS)))

    def forward(self, token_ids, mask, temperature, num_texts, targets):
        log_probs = torch.where(mask, self.weights[token_ids] - 1.0, 0.0)
        return log_probs, torch.zeros_like(log_probs)


def table(categories=(Category.EHD, Category.EHD)) -> AnswerTable:
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    return AnswerTable(
        sequences=Sequences(np.arange(starts[-1]), starts, np.ones(4, np.int64)),
        learn_starts=np.ones(4, np.int64),
        targets=np.full(4, OWN_TOKEN),
        sides=np.array([1, -1, 1, -1]),
        is_safe=np.array([True, False, True, False]),
        categories=np.repeat([list(Category).index(c) for c in categories], 2),
        answers_per_example=2,
        scores={
            "token_rewards": np.zeros(sum(LENGTHS), np.float32),
            "token_costs": np.array(COSTS, np.float32),
            "ref_log_probs": np.full(sum(LENGTHS), -1.0, np.float32),
        },
    )


def config(**ama) -> FitConfig:
    # The cross entropy would add to the chosen tokens; it must be left out.
    tree = {"objective": {"type": "dpo", "nll_coef": 1.0}, "fdc": {"amounts": {"EHD": 1}}}
    return parse_settings(FitConfig, tree | {"ama": {"delta": False} | ama})


@pytest.mark.parametrize("max_tokens", [8, 512])
def test_by_hand(max_tokens):
    # A pair takes 8 padded tokens: one to a pass, or both in one.
    settings = config()
    trainer = settings.trainer.model_copy(update={"max_tokens_per_batch": max_tokens})
    settings = settings.model_copy(update={"trainer": trainer})
    # All ten tokens have the same gradient but for its sign. The mask drops one, the -1 of the
    # rejected answer of the first pair: <m, g> = |m|^2 = 9, |g|^2 = 10.
    found = compare_masks(OneWeightPerToken(), table(), BOTH, settings)
    for name in ("mask", "random"):
        assert found[name].kept_fraction == pytest.approx(0.9)
        assert found[name].length == pytest.approx(math.sqrt(0.9))
        assert found[name].cosine == pytest.approx(math.sqrt(0.9))
    # The pairs share no token, and have five each.
    assert found["halves"].cosine == pytest.approx(0)
    assert found["halves"].length == pytest.approx(1)


def test_a_mask_that_keeps_everything_changes_nothing():
    mask = compare_masks(OneWeightPerToken(), table(), BOTH, config(dead_band=1.5))["mask"]
    assert (mask.cosine, mask.length) == (pytest.approx(1), pytest.approx(1))


def test_only_the_classes_that_the_mask_touches():
    general = table((Category.GENERAL, Category.EHD))
    assert masked_examples(general, config(ungated=[])).tolist() == [0, 1]
    with pytest.raises(ConfigError, match="leaves 1 examples to mask"):
        masked_examples(general, config())


@pytest.mark.parametrize(
    ("scores", "source"),
    [({}, "cost"), (table().scores, "reward"), (table().scores, "both")],  # rewards are all 0
)
def test_answers_that_the_mask_finds_no_scores_of_are_refused(scores, source):
    unscored = replace(table(), scores=scores)
    with pytest.raises(DataError, match=f"which ama.source={source} reads"):
        mask_directions(OneWeightPerToken(), unscored, config(source=source), most_examples=9)


def test_at_most_so_many_examples_are_drawn():
    settings = config()
    two = mask_directions(OneWeightPerToken(), table(), settings, most_examples=9)
    assert two["mask"].kept_fraction == pytest.approx(0.9)
    assert mask_directions(OneWeightPerToken(), table(), settings, most_examples=0) == two
