"""Verdicts by hand: gaps seed by seed, their interval, and where it lies."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.config.study import Claim
from equilibrate.evaluation import Estimate
from equilibrate.study import ClaimVerdict, decide, judge_claim, results_by_arm
from equilibrate.study.claims import effect_size
from tests.unit.study.studies import HARMS, plan, result, results, study

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_MEASURED = ClaimVerdict


def claim(expect: str = "lower", **changes: object) -> Claim:
    fields = {"text": "t", "figure": "harm", "of": "many", "against": "few", "expect": expect}
    return Claim.model_validate({**fields, **changes})


def by_arm(harms: dict[str, list[float]]):
    config = study()
    return results_by_arm(plan(config), results(config, harms))


@pytest.mark.parametrize(
    ("low", "high", "expect", "margin", "verdict"),
    [
        (0.01, 0.05, "higher", 0.0, REPRODUCED),
        (0.00, 0.05, "higher", 0.0, INCONCLUSIVE),  # zero itself is not higher
        (-0.05, 0.00, "higher", 0.0, NOT_REPRODUCED),
        (0.01, 0.05, "higher", 0.02, INCONCLUSIVE),  # higher, but perhaps by less than 2 points
        (0.01, 0.02, "higher", 0.02, NOT_REPRODUCED),
        (0.03, 0.05, "higher", 0.02, REPRODUCED),
        (-0.05, -0.01, "lower", 0.0, REPRODUCED),
        (-0.05, 0.00, "lower", 0.0, INCONCLUSIVE),
        (0.00, 0.05, "lower", 0.0, NOT_REPRODUCED),
        (-0.05, -0.03, "lower", 0.02, REPRODUCED),
        (-0.02, 0.01, "lower", 0.02, NOT_REPRODUCED),
        (-0.01, 0.01, "same", 0.02, REPRODUCED),
        (-0.01, 0.02, "same", 0.02, INCONCLUSIVE),  # the end is outside, not wholly
        (0.02, 0.05, "same", 0.02, NOT_REPRODUCED),
        (-0.05, -0.02, "same", 0.02, NOT_REPRODUCED),
        (-0.05, 0.05, "same", 0.02, INCONCLUSIVE),
    ],
)
def test_where_the_interval_lies(low, high, expect, margin, verdict):
    gap = Estimate(mean=(low + high) / 2, low=low, high=high, n=5)
    assert decide(gap, expect=expect, margin=margin) is verdict


def test_less_than_two_seeds_decide_nothing():
    one = Estimate(mean=0.5, low=-math.inf, high=math.inf, n=1)
    assert decide(one, expect="higher", margin=0.0) is NOT_MEASURED
    assert decide(None, expect="higher", margin=0.0) is NOT_MEASURED


@pytest.mark.parametrize("expect", ["higher", "same"])
def test_a_few_equal_gaps_decide_nothing(expect):
    five, six = (Estimate(mean=0.5, low=0.5, high=0.5, n=n) for n in (5, 6))
    assert decide(five, expect=expect, margin=0.9 if expect == "same" else 0.0) is INCONCLUSIVE
    assert decide(six, expect=expect, margin=0.9 if expect == "same" else 0.0) is REPRODUCED


def test_five_gaps_by_hand():
    """Gaps -1 ... -5 points: mean -3, s = sqrt(2.5), t(4) = 2.7764.

    Half width 2.7764 s / sqrt(5) = 1.963; d_z = -3 / sqrt(2.5) = -1.897.
    """
    judged = judge_claim(claim(), by_arm(HARMS))
    assert list(judged.gaps) == [0, 1, 2, 3, 4]
    assert list(judged.gaps.values()) == pytest.approx([-0.01, -0.02, -0.03, -0.04, -0.05])
    assert judged.gap is not None
    assert judged.gap.mean == pytest.approx(-0.03)
    assert judged.gap.low == pytest.approx(-0.04963, abs=1e-5)
    assert judged.gap.high == pytest.approx(-0.01037, abs=1e-5)
    assert judged.effect_size == pytest.approx(-1.8974, abs=1e-4)
    assert judged.verdict is REPRODUCED
    assert (judged.num_seeds, judged.is_preliminary) == (5, False)


def test_an_arm_against_itself_at_another_figure():
    """The cell IHD lies 0.10 above the cell EHD_seen of the same arm; few 0.30 + 0.05."""
    pair = {"figure": "harm.EHD_seen", "against_figure": "harm.IHD"}
    alone = judge_claim(claim(against="many", **pair), by_arm(HARMS))
    assert list(alone.gaps.values()) == pytest.approx([-0.1] * 5)
    other = judge_claim(claim(**pair), by_arm(HARMS))
    assert list(other.gaps.values()) == pytest.approx([-0.11, -0.12, -0.13, -0.14, -0.15])


def test_the_t_interval_decides():
    """Gaps 1, 1, 1, 1, -1 points: mean 0.6, s = 0.894, half 1.11."""
    gaps = [0.01, 0.01, 0.01, 0.01, -0.01]
    harms = {"few": [0.3] * 5, "many": [0.3 + gap for gap in gaps]}
    judged = judge_claim(claim("higher", margin=0.0), by_arm(harms))
    assert judged.gap is not None
    assert judged.gap.low == pytest.approx(0.006 - 0.01111, abs=1e-4)
    assert judged.verdict is INCONCLUSIVE


def test_only_common_seeds_count():
    judged = judge_claim(claim(), by_arm({"few": [0.3, 0.3, 0.3], "many": [0.2, 0.1]}))
    assert judged.gaps == pytest.approx({0: -0.1, 1: -0.2})
    assert (judged.num_seeds, judged.is_preliminary) == (2, True)
    four = judge_claim(claim(), by_arm({"few": [0.3] * 5, "many": [0.2, 0.1, 0.2, 0.1]}))
    assert (four.num_seeds, four.is_preliminary) == (4, True)
    alone = judge_claim(claim(), by_arm({"few": [0.3], "many": [0.2]}))
    assert (alone.verdict, alone.num_seeds, alone.is_preliminary) == (NOT_MEASURED, 1, False)
    assert math.isnan(alone.effect_size)
    nothing = judge_claim(claim(), by_arm({"few": [0.3]}))
    assert (nothing.verdict, nothing.gap) == (NOT_MEASURED, None)


def test_a_number_that_is_none_is_no_measurement():
    runs = plan(study())
    shares = {"few": [0.4, math.nan, 0.4], "many": [0.5, 0.5, 0.6]}
    made = {
        run.key: result(run, training={"kept_fraction": shares[run.arms[0]][run.seed]})
        for run in runs
        if run.arms[0] in shares and run.seed < 3
    }
    judged = judge_claim(
        claim("higher", figure="training.kept_fraction"), results_by_arm(runs, made)
    )
    assert judged.gaps == pytest.approx({0: 0.1, 2: 0.2})
    absent = judge_claim(claim("higher", figure="training.labels"), results_by_arm(runs, made))
    assert absent.verdict is NOT_MEASURED


def test_fronts_by_hand():
    """Points (harm, 1 - refusal): few (0.2, 0.5) and many (0.5, 0.8) dominate
    0.3 x 0.5 + 0.5 x 0.8 = 0.55; offline (0.5, 0.6) dominates 0.3.
    """
    points = {"few": (0.2, 0.5), "many": (0.5, 0.2), "offline": (0.5, 0.4)}
    runs = plan(study())
    made = {
        run.key: result(run, harm=points[run.arms[0]][0], refusal=points[run.arms[0]][1])
        for run in runs
        if run.seed < 2
    }
    fields = {"figure": "", "front": ["harm", "over_refusal"], "of": ["few", "many"]}
    judged = judge_claim(claim("higher", against="offline", **fields), results_by_arm(runs, made))
    assert judged.gaps == pytest.approx({0: 0.25, 1: 0.25})
    assert judged.verdict is INCONCLUSIVE  # two seeds without a spread
    # Without one of its arms a front is not measured.
    made.pop(next(run.key for run in runs if run.arms == ("many",) and run.seed == 1))
    judged = judge_claim(claim("higher", against="offline", **fields), results_by_arm(runs, made))
    assert list(judged.gaps) == [0]


def test_fronts_at_equal_harm_by_hand():
    """Value 1 - refusal: few (0.2, 0.5) to many (0.5, 0.8) is 0.7 at harm 0.4, offline 0.6 there.

    In seed 1 offline is at harm 0.6, which the others do not reach.
    """
    points = {"few": (0.2, 0.5), "many": (0.5, 0.2), "offline": (0.4, 0.4)}
    runs = plan(study())
    made = {
        run.key: result(run, harm=points[run.arms[0]][0], refusal=points[run.arms[0]][1])
        for run in runs
    }
    beyond = next(run for run in runs if run.arms == ("offline",) and run.seed == 1)
    made[beyond.key] = result(beyond, harm=0.6, refusal=0.4)
    fields = {"figure": "", "front": ["harm", "over_refusal"], "compare": "equal_harm"}
    judged = judge_claim(
        claim("higher", of=["few", "many"], against="offline", **fields),
        results_by_arm(runs, made),
    )
    assert judged.gaps == pytest.approx({0: 0.1, 2: 0.1, 3: 0.1, 4: 0.1})


def test_a_front_without_a_point_is_no_measurement():
    runs = plan(study())
    made = {run.key: result(run) for run in runs}
    fields = {"figure": "", "front": ["harm", "helpfulness.BORDERLINE"], "of": ["few", "many"]}
    judged = judge_claim(claim("higher", against="offline", **fields), results_by_arm(runs, made))
    assert judged.verdict is NOT_MEASURED


def test_effect_size_without_a_spread_is_nan():
    assert effect_size([0.01, 0.03]) == pytest.approx(math.sqrt(2))  # 0.02 / (0.02 / sqrt(2))
    assert math.isnan(effect_size([0.1]))
    assert math.isnan(effect_size([0.3 - 0.2, 0.1, 0.1]))  # differ in the last bit only


SHARES = st.lists(st.tuples(st.integers(5, 95), st.integers(5, 95)), min_size=1, max_size=5)


@given(SHARES, st.sampled_from(["higher", "lower", "same"]), st.sampled_from([0.01, 0.05, 0.2]))
def test_a_claim_and_its_mirror_have_one_verdict(pairs, expect, margin):
    harms = {"few": [a / 100 for a, _ in pairs], "many": [b / 100 for _, b in pairs]}
    mirrored = {"higher": "lower", "lower": "higher", "same": "same"}[expect]
    measured = by_arm(harms)
    one = judge_claim(claim(expect, margin=margin), measured)
    other = judge_claim(claim(mirrored, margin=margin, of="few", against="many"), measured)
    assert one.verdict is other.verdict
    assert one.gaps == {seed: -gap for seed, gap in other.gaps.items()}
