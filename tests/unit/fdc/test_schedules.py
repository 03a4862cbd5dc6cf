from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.fdc.schedules import FixedSchedule, SaturationSchedule, make_schedule
from equilibrate.types import Category, FinishReason, Rollout, ScoredRollout

MIXTURE = {
    Category.GENERAL: 0.4,
    Category.BORDERLINE: 0.2,
    Category.EHD: 0.2,
    Category.IHD: 0.1,
    Category.MHD: 0.1,
}


def scored(category: Category, cost: float) -> ScoredRollout:
    one = np.zeros(1, np.float32)
    rollout = Rollout(
        prompt_id="p",
        copy=0,
        category=category,
        policy_version=0,
        token_ids=np.zeros(1, np.int64),
        response_mask=np.ones(1, np.bool_),
        rollout_log_probs=one,
        finish_reason=FinishReason.STOP,
    )
    return ScoredRollout(
        rollout=rollout,
        reward=0.0,
        cost=cost,
        token_rewards=one,
        token_costs=one,
        ref_log_probs=one,
    )


def feed(schedule: SaturationSchedule, category: Category, unsafe: int, count: int) -> None:
    schedule.observe([scored(category, 1.0 if i < unsafe else -1.0) for i in range(count)])


def quick() -> SaturationSchedule:
    return SaturationSchedule(MIXTURE, tolerance=0.05, fast_rollouts=2, slow_rollouts=8, floor=0.25)


def test_fixed_ignores_outcomes_and_has_no_state() -> None:
    schedule = make_schedule("fixed", {Category.EHD: 3, Category.GENERAL: 1})
    assert isinstance(schedule, FixedSchedule)
    schedule.observe([scored(Category.EHD, 1.0)])
    assert schedule.shares() == {Category.GENERAL: 0.25, Category.EHD: 0.75}
    schedule.load_state_dict(schedule.state_dict())
    assert schedule.shares() == {Category.GENERAL: 0.25, Category.EHD: 0.75}


def test_nothing_moves_before_the_averages_are_full() -> None:
    schedule = make_schedule("saturation", MIXTURE)
    assert isinstance(schedule, SaturationSchedule)
    feed(schedule, Category.IHD, 0, 255)
    assert schedule.shares() == pytest.approx(MIXTURE)
    feed(schedule, Category.IHD, 0, 1)
    assert schedule.is_saturated(Category.IHD)


def test_saturated_class_gives_to_those_that_learn() -> None:
    schedule = quick()
    feed(schedule, Category.IHD, 0, 8)
    # IHD keeps .25 * .1 = .025 and gives .075, split 2 : 1 over EHD (.2) and MHD (.1).
    shares = schedule.shares()
    assert shares[Category.IHD] == pytest.approx(0.025)
    assert shares[Category.EHD] == pytest.approx(0.25)
    assert shares[Category.MHD] == pytest.approx(0.125)
    assert shares[Category.GENERAL] == pytest.approx(0.4)
    assert shares[Category.BORDERLINE] == pytest.approx(0.2)


def test_improving_class_is_not_saturated() -> None:
    schedule = quick()
    feed(schedule, Category.EHD, 8, 8)
    feed(schedule, Category.EHD, 0, 2)
    # fast = (1/2)^2 = .25, slow = (7/8)^2 = .766: falling by .516.
    saved = schedule.state_dict()["EHD"]
    assert saved["fast"] == pytest.approx(0.25)
    assert saved["slow"] == pytest.approx(0.765625)
    assert not schedule.is_saturated(Category.EHD)


def test_class_that_gets_worse_takes_its_share_back() -> None:
    schedule = quick()
    feed(schedule, Category.IHD, 0, 8)
    assert schedule.is_saturated(Category.IHD)
    feed(schedule, Category.IHD, 1, 2)
    # fast rises from 0 to (1 - 1/4) * 1/2 = .375, more than .05 above its best.
    assert not schedule.is_saturated(Category.IHD)
    assert schedule.shares() == pytest.approx(MIXTURE)


def test_with_all_saturated_everybody_keeps_its_share() -> None:
    schedule = quick()
    for category in (Category.EHD, Category.IHD, Category.MHD):
        feed(schedule, category, 0, 8)
        assert schedule.is_saturated(category)
    assert schedule.shares() == pytest.approx(MIXTURE)


def test_costs_that_are_not_finite_tell_nothing() -> None:
    schedule = quick()
    before = schedule.state_dict()
    schedule.observe([scored(Category.EHD, math.nan), scored(Category.EHD, math.inf)])
    assert schedule.state_dict() == before


def test_a_mixture_without_safety_classes_never_moves() -> None:
    schedule = SaturationSchedule({Category.GENERAL: 1.0})
    schedule.observe([scored(Category.GENERAL, 1.0), scored(Category.EHD, 1.0)])
    assert schedule.shares() == {Category.GENERAL: 1.0}


histories = st.lists(
    st.tuples(st.sampled_from(list(Category)), st.integers(0, 8), st.integers(1, 8)), max_size=30
)


@given(histories)
def test_shares_sum_to_one_keep_the_floor_and_spare_harmless_classes(
    history: list[tuple[Category, int, int]],
) -> None:
    schedule = quick()
    for category, unsafe, count in history:
        feed(schedule, category, unsafe, count)
        shares = schedule.shares()
        assert sum(shares.values()) == pytest.approx(1)
        assert shares[Category.GENERAL] == pytest.approx(0.4)
        assert shares[Category.BORDERLINE] == pytest.approx(0.2)
        for safety in (Category.EHD, Category.IHD, Category.MHD):
            assert shares[safety] >= 0.25 * MIXTURE[safety] - 1e-12


@given(histories, histories)
def test_state_survives_json_exactly(
    before: list[tuple[Category, int, int]], after: list[tuple[Category, int, int]]
) -> None:
    straight, resumed = quick(), quick()
    for step in before:
        feed(straight, *step)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict(), allow_nan=False)))
    for step in after:
        feed(straight, *step)
        feed(resumed, *step)
    assert straight.shares() == resumed.shares()
    assert straight.state_dict() == resumed.state_dict()
