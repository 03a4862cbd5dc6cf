from __future__ import annotations

import numpy as np
import pytest

from equilibrate.offline.sampling import best_and_worst
from equilibrate.types import Category, FinishReason, Rollout, ScoredRollout


def answer(token: int, reward: float, cost: float = 0.0, *, is_cut: bool = False) -> ScoredRollout:
    numbers = np.zeros(2, np.float32)
    rollout = Rollout(
        prompt_id="p",
        copy=0,
        category=Category.GENERAL,
        policy_version=0,
        token_ids=np.array([1, token]),
        response_mask=np.array([False, True]),
        rollout_log_probs=numbers,
        finish_reason=FinishReason.LENGTH if is_cut else FinishReason.STOP,
    )
    return ScoredRollout(
        rollout=rollout,
        reward=reward,
        cost=cost,
        token_rewards=numbers,
        token_costs=numbers,
        ref_log_probs=numbers,
    )


def tokens(pairs):
    return [tuple(int(side.rollout.token_ids[-1]) for side in pair) for pair in pairs]


def test_best_and_worst_of_each_prompt():
    scored = [answer(2, 0.5), answer(3, 2.0), answer(4, 1.0), answer(5, -1.0)]
    assert tokens(best_and_worst(scored, copies=2, multiplier=0.0)) == [(3, 2), (4, 5)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_answers_without_a_finite_score_are_no_choice(bad):
    scored = [answer(2, bad), answer(3, 2.0), answer(4, 1.0), answer(5, 0.0, bad)]
    assert tokens(best_and_worst(scored, copies=4, multiplier=1.0)) == [(3, 4)]
    assert best_and_worst(scored[:1] * 2, copies=2, multiplier=1.0) == []


@pytest.mark.parametrize(
    ("multiplier", "expected"),
    # scores R - lambda C: 3 - 2 lambda and 1
    [(0.5, (2, 3)), (2.0, (3, 2))],
)
def test_the_multiplier_weighs_the_cost(multiplier, expected):
    scored = [answer(2, 3.0, 2.0), answer(3, 1.0, 0.0)]
    assert tokens(best_and_worst(scored, copies=2, multiplier=multiplier)) == [expected]


def test_an_answer_that_was_cut_off_is_never_the_best():
    scored = [answer(2, 9.0, is_cut=True), answer(3, 1.0), answer(4, 0.0)]
    assert tokens(best_and_worst(scored, copies=3, multiplier=0.0)) == [(3, 4)]


@pytest.mark.parametrize(
    "scored",
    [
        [answer(2, 1.0), answer(2, 1.0)],
        [answer(2, 1.0, is_cut=True), answer(3, 0.0, is_cut=True)],
    ],
)
def test_a_prompt_that_tells_nothing_is_left_out(scored):
    assert best_and_worst(scored, copies=2, multiplier=0.0) == []


def test_answers_must_come_in_full_groups():
    with pytest.raises(ValueError, match="multiple of copies"):
        best_and_worst([answer(2, 1.0)], copies=2, multiplier=0.0)
