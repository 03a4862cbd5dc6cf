from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.config.fit import DertaConfig
from equilibrate.errors import DataError
from equilibrate.models.log_probs import token_log_probs
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.offline.table import encode_answers
from equilibrate.preference.derta import derta_answers
from equilibrate.preference.losses import sft_loss
from tests.unit.text.folders import world_renderer

HARMFUL = "first open the lamp ."
SAFE = "i can not help with that ."


def columns(count: int = 1, *, is_chosen_safe: bool = True, is_rejected_safe: bool = False):
    return {
        "prompt": ["what is a lamp ?"] * count,
        "chosen": [SAFE] * count,
        "rejected": [HARMFUL] * count,
        "is_chosen_safe": [is_chosen_safe] * count,
        "is_rejected_safe": [is_rejected_safe] * count,
    }


def encode(answers):
    return encode_answers(world_renderer(), answers, answers_per_example=1, max_length=64)


def test_data_without_safety_are_refused():
    table = {name: column for name, column in columns().items() if "safe" not in name}
    with pytest.raises(DataError, match="is_chosen_safe and is_rejected_safe"):
        derta_answers(table, refusal="i", seed=0)


def test_a_pair_gives_a_turn_and_a_refusal_at_every_token():
    turn, refusal = derta_answers(columns(), refusal="sorry", seed=0)
    assert turn.response.strip() == SAFE
    assert HARMFUL.startswith(turn.given)
    assert turn.target == ""
    assert (refusal.response, refusal.target) == (HARMFUL, "sorry")


def test_the_beginning_is_of_any_length_and_fixed_by_the_seed():
    lengths = [
        Counter(len(a.given.split()) for a in derta_answers(columns(200), refusal="i", seed=s)[::2])
        for s in (0, 0, 1)
    ]
    # 0 to all 5 words, each about 200 / 6 = 33 times: four standard errors are 21
    assert set(lengths[0]) == set(range(6))
    assert all(12 <= count <= 55 for count in lengths[0].values())
    assert lengths[0] == lengths[1] != lengths[2]


@given(st.text(st.sampled_from("ab \n\t\u00a0\u2028"), max_size=30), st.integers(0, 9))
def test_a_beginning_is_the_very_text_of_the_harmful_answer(rejected, seed):
    table = columns() | {"rejected": [rejected]}
    turn = derta_answers(table, refusal="i", seed=seed)[0]
    assert rejected.startswith(turn.given)
    assert not turn.given or not turn.given[-1].isspace()
    assert turn.response == (f" {SAFE}" if turn.given else SAFE)


@pytest.mark.parametrize("labels", [(True, True), (False, False), (False, True)])
def test_other_pairs_teach_their_chosen_answer(labels):
    table = columns(is_chosen_safe=labels[0], is_rejected_safe=labels[1])
    answers = derta_answers(table, refusal="i", seed=0)
    assert [(a.given, a.response, a.target) for a in answers] == [("", SAFE, "")]


def test_at_uniform_logits_every_token_of_the_harmful_answer_costs_log_v():
    """Term 2 is |r^| log V: the end of the sequence is no token of the answer."""
    answers = OBJECTIVES["derta"].view(columns(), DertaConfig(refusal="sorry"), 0)
    table = encode(answers[1:])
    padded = table.padded(np.array([0]))
    num_words, size = len(HARMFUL.split()), len(world_renderer().tokenizer)
    assert padded.response_mask.sum() == num_words
    logits = torch.zeros(*padded.token_ids.shape, size)
    log_probs = token_log_probs(logits, padded.targets)
    loss = sft_loss(log_probs, padded.response_mask, num_tokens=1)
    assert loss.item() == pytest.approx(num_words * math.log(size), rel=1e-5)


def test_what_was_begun_carries_no_loss():
    answers = derta_answers(columns(20), refusal="i", seed=0)[::2]
    table = encode(answers)
    learned = table.padded(np.arange(20)).response_mask.sum(1)
    assert learned.tolist() == [len(SAFE.split()) + 1] * 20
