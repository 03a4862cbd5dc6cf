from __future__ import annotations

import numpy as np
import pytest
import torch

from equilibrate.data.answers import Answer
from equilibrate.errors import DataError
from equilibrate.offline.table import (
    OWN_TOKEN,
    AnswerTable,
    encode_answers,
    load_answers,
    table_of_pairs,
)
from equilibrate.sandbox.tokenizer import build_tokenizer, encode_prompt
from equilibrate.types import Category, ScoredRollout
from tests.fakes import encode_response
from tests.unit.text.folders import world_renderer

TOKENIZER = build_tokenizer()
PROMPT = "what is a item ?"
CHOSEN, REJECTED = "that is fine .", "that is a common item ."


def encode(*answers: Answer, answers_per_example: int = 1, max_length: int = 64) -> AnswerTable:
    return encode_answers(
        world_renderer(),
        answers,
        answers_per_example=answers_per_example,
        max_length=max_length,
    )


def pair(**changes) -> AnswerTable:
    chosen = Answer(prompt=PROMPT, response=CHOSEN, category=Category.IHD, **changes)
    rejected = Answer(
        prompt=PROMPT, response=REJECTED, side=-1, is_safe=False, category=Category.IHD
    )
    return encode(chosen, rejected, answers_per_example=2)


def score(rollouts) -> list[ScoredRollout]:
    """Every token's reward is its id, its cost the negative, its reference 0.5."""
    return [
        ScoredRollout(
            rollout=rollout,
            reward=0.0,
            cost=0.0,
            token_rewards=rollout.token_ids.astype(np.float32),
            token_costs=-rollout.token_ids.astype(np.float32),
            ref_log_probs=np.full(len(rollout.token_ids), 0.5, np.float32),
        )
        for rollout in rollouts
    ]


def test_an_answer_is_prompt_then_response_as_the_world_encodes_them():
    table = pair()
    ids = encode_prompt(TOKENIZER, PROMPT) + encode_response(TOKENIZER, CHOSEN)
    assert table.sequences.flat[: len(ids)].tolist() == ids
    padded = table.padded(np.array([0, 1]))
    assert padded.token_ids.shape == padded.response_mask.shape
    assert padded.token_ids[0, padded.response_mask[0]].tolist() == encode_response(
        TOKENIZER, CHOSEN
    )
    assert padded.sides.tolist() == [1.0, -1.0]
    assert padded.is_safe.tolist() == [True, False]


def test_an_example_is_as_long_as_its_longest_answer_for_each_of_them():
    table = pair()
    assert len(table) == 1
    assert table.example_lengths.tolist() == [2 * max(table.sequences.lengths)]
    assert table.rows_of(np.array([0])).tolist() == [0, 1]


def test_tokens_teach_themselves_unless_a_target_is_named():
    table = encode(
        Answer(prompt=PROMPT, response=CHOSEN),
        Answer(prompt=PROMPT, response=CHOSEN, target="item ."),
    )
    item = TOKENIZER("item", add_special_tokens=False)["input_ids"][0]
    assert table.targets.tolist() == [OWN_TOKEN, item]
    padded = table.padded(np.array([0, 1]))
    assert torch.equal(padded.targets[0], padded.token_ids[0])
    assert padded.targets[1].unique().tolist() == [item]
    # And no end of sequence is taught to be one.
    assert padded.response_mask.sum(1).tolist() == [5, 4]


def test_what_is_given_is_context_and_not_learned():
    table = encode(Answer(prompt=PROMPT, given="that is", response="fine ."))
    whole = encode(Answer(prompt=PROMPT, response="that is fine ."))
    assert table.sequences.flat.tolist() == whole.sequences.flat.tolist()
    learned = table.padded(np.array([0])).response_mask
    assert learned.sum() == whole.padded(np.array([0])).response_mask.sum() - 2


def test_long_answers_are_cut():
    room = len(encode_prompt(TOKENIZER, PROMPT)) + 2
    table = encode(Answer(prompt=PROMPT, response=CHOSEN), max_length=room)
    assert table.sequences.lengths == [room]
    assert table.padded(np.array([0])).response_mask.sum() == 2


def test_prompts_that_leave_no_room_are_counted_and_refused_if_there_is_no_other():
    room = len(encode_prompt(TOKENIZER, "what is it ?")) + 1
    short = Answer(prompt="what is it ?", response=CHOSEN)
    long = Answer(prompt=f"{PROMPT} {PROMPT}", response=CHOSEN)
    table = encode(short, long, max_length=room)
    assert (len(table), table.num_left_out) == (1, 1)
    assert table.sequences.lengths.tolist() == [room]
    with pytest.raises(DataError, match=r"prompt leaves no room within max_length"):
        encode(long, max_length=room)


def test_a_pair_that_the_cut_makes_equal_teaches_and_measures_nothing():
    room = len(encode_prompt(TOKENIZER, PROMPT)) + 1
    begin_alike = [
        Answer(prompt=PROMPT, response=text, side=side)
        for text, side in ((CHOSEN, 1), (f"{CHOSEN} {CHOSEN}", -1))
    ]
    differ = [
        Answer(prompt="what is it ?", response=text, side=side)
        for text, side in ((CHOSEN, 1), ("a item .", -1))
    ]
    both = encode(*begin_alike, *differ, answers_per_example=2, max_length=room)
    assert (len(both), both.num_left_out) == (1, 2)
    assert both.sides.tolist() == [1, -1]
    with pytest.raises(DataError, match="the same tokens twice"):
        encode(*begin_alike, answers_per_example=2, max_length=room)


def test_a_long_prompt_is_one_prompt_wherever_it_is_cut():
    """Held out or learned from as a whole: what follows in the table does not count."""
    long = f"{PROMPT} {PROMPT}"
    answers = [
        Answer(prompt=prompt, response=CHOSEN)
        for prompt in (long, "what is it ?", long, PROMPT, long)
    ]
    table = encode(*answers)
    for seed in range(8):
        learned, held_out = table.split(0.4, seed)
        assert {0, 2, 4} <= set(learned) or {0, 2, 4} <= set(held_out)


@pytest.mark.parametrize("target", [" ", "nonsense"])
def test_a_target_must_be_a_token(target):
    with pytest.raises(DataError, match=r"objective\.refusal"):
        encode(Answer(prompt=PROMPT, response=CHOSEN, target=target))


def test_classes_without_a_gate_are_not_masked():
    table = encode(
        Answer(prompt=PROMPT, response=CHOSEN, category=Category.GENERAL),
        Answer(prompt=PROMPT, response=CHOSEN, category=Category.EHD),
    )
    padded = table.padded(np.array([0, 1]), ungated=(Category.GENERAL,))
    assert padded.may_be_masked.tolist() == [False, True]
    assert table.shares == {Category.GENERAL: 0.5, Category.EHD: 0.5}
    assert pair().shares == {Category.IHD: 1.0}


def test_scores_lie_where_their_tokens_lie():
    table = pair().scored(score)
    padded = table.padded(np.array([1, 0]))
    real = padded.ref_log_probs == 0.5
    assert torch.equal(padded.token_rewards, torch.where(real, padded.token_ids, 0).float())
    assert torch.equal(padded.token_costs, -padded.token_rewards)
    assert real.sum(1).tolist() == table.sequences.lengths[[1, 0]].tolist()


def test_scores_come_in_parts(monkeypatch):
    monkeypatch.setattr("equilibrate.offline.table.SCORED_TOGETHER", 1)
    sizes = []

    def count(rollouts):
        sizes.append(len(rollouts))
        return score(rollouts)

    table = pair()
    assert np.array_equal(
        table.scored(count).scores["token_rewards"], table.sequences.flat.astype(np.float32)
    )
    assert sizes == [1, 1]


def test_a_score_that_is_not_finite_is_refused():
    def broken(rollouts):
        scored = score(rollouts)
        scored[0].token_costs[2] = np.nan
        return scored

    with pytest.raises(DataError, match="token_costs of the answers must be finite"):
        pair().scored(broken)


@pytest.mark.parametrize("is_scored", [False, True])
def test_a_table_comes_back_from_its_folder(tmp_path, is_scored):
    table = pair().scored(score) if is_scored else pair()
    table.save(tmp_path)
    again = load_answers(tmp_path)
    assert again.answers_per_example == 2
    rows = np.array([1, 0])
    mine, theirs = table.padded(rows), again.padded(rows)
    for name in mine.__slots__:
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


def test_sampled_answers_keep_their_tokens_and_scores():
    table = pair()
    scored = score(table._rollouts(0, 2))
    again = table_of_pairs([(scored[0], scored[1])], with_worst=True)
    rows = np.array([0, 1])
    expected, found = table.scored(score).padded(rows), again.padded(rows)
    for name in ("token_ids", "targets", "response_mask", "token_rewards", "sides"):
        assert torch.equal(getattr(expected, name), getattr(found, name)), name


def test_the_worst_answer_is_kept_only_where_it_is_unlearned():
    scored = score(pair()._rollouts(0, 2))
    best = table_of_pairs([(scored[0], scored[1])], with_worst=False)
    assert (best.answers_per_example, best.sides.tolist()) == (1, [1])
    assert best.sequences.lengths.tolist() == pair().sequences.lengths[:1].tolist()


def test_no_pair_at_all_is_refused():
    with pytest.raises(DataError, match=r"no prompt has two different answers.*copies"):
        table_of_pairs([], with_worst=True)


def test_of_a_text_beyond_all_room_only_the_beginning_is_tokenized(monkeypatch):
    renderer, seen = world_renderer(), []
    answers_of = renderer.answers

    def watched(conversations, responses, **options):
        seen.extend([*conversations, *responses])
        return answers_of(conversations, responses, **options)

    monkeypatch.setattr(renderer, "answers", watched)
    long = Answer(prompt=PROMPT, response="that is fine . " * 100_000)
    table = encode_answers(renderer, [long], answers_per_example=1, max_length=16)
    assert max(map(len, seen)) == 50 * 16
    whole = encode(Answer(prompt=PROMPT, response="that is fine . " * 200), max_length=16)
    assert table.sequences.flat.tolist() == whole.sequences.flat.tolist()
