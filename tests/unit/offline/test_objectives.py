"""Each objective's loss of a batch by hand; what it is made of is tested where that is."""

from __future__ import annotations

import math

import pytest
import torch

from equilibrate.config.fit import ArsConfig, DpoConfig, SftConfig
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.preference.batches import AnswerBatch, SideCounts


def batch(**changes) -> AnswerBatch:
    """One pair of two tokens each; the chosen answer's second token and no other is masked."""
    fields = {
        "log_probs": torch.tensor([[-1.0, -3.0], [-2.0, -0.5]]),
        "log_ratios": torch.tensor([2.0, -1.0]),
        "response_mask": torch.ones(2, 2, dtype=torch.bool),
        "gradient_mask": torch.tensor([[True, False], [True, True]]),
        "sides": torch.tensor([1.0, -1.0]),
        "is_safe": torch.tensor([True, False]),
        "is_used": torch.tensor([True, True]),
        "num_examples": 1,
        "positive": SideCounts(tokens=2, learned=1),
        "negative": SideCounts(tokens=2, learned=2),
    }
    return AnswerBatch(**(fields | changes))


def loss(name, batch, settings):
    return OBJECTIVES[name].loss(batch, settings).item()


def test_sft_is_the_mean_over_learned_tokens():
    only_chosen = batch(gradient_mask=torch.tensor([[True, False], [False, False]]))
    assert loss("sft", only_chosen, SftConfig()) == pytest.approx(1.0)


def test_dpo_without_its_second_term():
    expected = math.log1p(math.exp(-0.2 * 3.0))
    assert loss("dpo", batch(), DpoConfig(beta=0.2, nll_coef=0.0)) == pytest.approx(expected)


# The second term is 1, the one kept token, or (1 + 3) / 2, both.
@pytest.mark.parametrize(("nll_on", "nll"), [("kept", 1.0), ("all", 2.0)])
def test_the_second_term_of_dpo_reads_kept_or_all_tokens_of_the_chosen_answer(nll_on, nll):
    with_nll = loss("dpo", batch(), DpoConfig(beta=0.2, nll_coef=0.5, nll_on=nll_on))
    without = loss("dpo", batch(), DpoConfig(beta=0.2, nll_coef=0.0))
    assert with_nll - without == pytest.approx(0.5 * nll)


def test_a_pair_that_is_left_out_has_no_part_in_dpo():
    two = batch(
        log_probs=torch.zeros(4, 2),
        log_ratios=torch.tensor([2.0, -1.0, 50.0, 7.0]),
        response_mask=torch.ones(4, 2, dtype=torch.bool),
        gradient_mask=torch.ones(4, 2, dtype=torch.bool),
        sides=torch.tensor([1.0, -1.0, 1.0, -1.0]),
        is_used=torch.tensor([True, True, False, False]),
    )
    settings = DpoConfig(beta=0.2, nll_coef=0.0)
    assert loss("dpo", two, settings) == pytest.approx(loss("dpo", batch(), settings))


def test_ars_learns_the_best_and_unlearns_the_worst_where_asked():
    assert loss("ars", batch(), ArsConfig()) == pytest.approx(1.0)
    # -log(1 - e^-2) and -log(1 - e^-0.5), of two tokens
    unlikely = -(math.log1p(-math.exp(-2.0)) + math.log1p(-math.exp(-0.5))) / 2
    with_worst = loss("ars", batch(), ArsConfig(negative_coef=0.5))
    assert with_worst == pytest.approx(1.0 + 0.5 * unlikely)


def test_objectives_that_compare_have_pairs():
    assert {name: o.answers_per_example for name, o in OBJECTIVES.items()}["dpo"] == 2
    for objective in OBJECTIVES.values():
        assert objective.answers_per_example in (1, 2)
