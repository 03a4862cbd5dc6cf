from __future__ import annotations

import math

import numpy as np
import pytest

from equilibrate.run.metrics import METRICS, mixture_metrics, require_known, rollout_metrics
from equilibrate.types import Category, FinishReason, Rollout, ScoredRollout

FROM_THE_DRIVER = {"multiplier", "kl_coef", "policy_lag", "skipped"}
FROM_THE_LEARNER = {
    "policy_loss",
    "value_loss",
    "cost_value_loss",
    "ptx_loss",
    "entropy",
    "kl",
    "approx_kl",
    "clip_fraction",
    "kept_fraction",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "parity_gap_nats",
    "parity_gap_mean_nats",
    "mismatch_kl",
    "importance_weight",
    "importance_capped",
}


def scored(
    category: Category, *, reward: float, cost: float, length: int = 2, cut: bool = False
) -> ScoredRollout:
    zeros = np.zeros(length + 1, dtype=np.float32)
    rollout = Rollout(
        prompt_id="p",
        copy=0,
        category=category,
        policy_version=0,
        token_ids=np.arange(length + 1),
        response_mask=np.array([False] + [True] * length),
        rollout_log_probs=zeros,
        finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
    )
    return ScoredRollout(
        rollout=rollout,
        reward=reward,
        cost=cost,
        token_rewards=zeros,
        token_costs=zeros,
        ref_log_probs=zeros,
    )


def test_rollout_metrics_by_hand():
    values = rollout_metrics(
        [
            scored(Category.GENERAL, reward=3.0, cost=-2.0, length=4, cut=True),
            scored(Category.EHD, reward=1.0, cost=1.0),
            scored(Category.EHD, reward=1.0, cost=0.0),  # exactly 0 is still safe
            scored(Category.MHD, reward=-1.0, cost=4.0, length=4),
        ]
    )
    assert values == {
        "reward": 1.0,  # (3 + 1 + 1 - 1) / 4
        "reward_std": pytest.approx(math.sqrt(2.0)),  # (4 + 0 + 0 + 4) / 4
        "cost": 0.75,  # (-2 + 1 + 0 + 4) / 4
        "cost_std": pytest.approx(math.sqrt(4.6875)),  # (2.75^2 + 0.25^2 + 0.75^2 + 3.25^2) / 4
        "left_out_fraction": 0.0,
        "safety_cost": pytest.approx(5 / 3),  # (1 + 0 + 4) / 3
        "unsafe_fraction": pytest.approx(2 / 3),
        "unsafe_fraction_all": 0.5,  # with the one of GENERAL, which is safe
        "response_length": 3.0,  # (4 + 2 + 2 + 4) / 4
        "truncated_fraction": 0.25,
        "cost_GENERAL": -2.0,
        "unsafe_fraction_GENERAL": 0.0,
        "cost_EHD": 0.5,
        "unsafe_fraction_EHD": 0.5,
        "cost_MHD": 4.0,
        "unsafe_fraction_MHD": 1.0,
    }


def test_a_class_without_rollouts_has_no_number():
    values = rollout_metrics([scored(Category.GENERAL, reward=0.0, cost=-1.0)])
    assert "safety_cost" not in values
    assert "cost_EHD" not in values
    with pytest.raises(ValueError, match="at least one"):
        rollout_metrics([])


def test_rollouts_with_a_broken_score_are_counted_and_left_out():
    whole = [
        scored(Category.GENERAL, reward=3.0, cost=-2.0),
        scored(Category.EHD, reward=1.0, cost=1.0),
    ]
    broken = [
        scored(Category.EHD, reward=math.nan, cost=9.0, length=7),
        scored(Category.MHD, reward=9.0, cost=math.inf, length=7),
    ]
    values = rollout_metrics([*broken, *whole])
    assert values.pop("left_out_fraction") == 0.5
    alone = rollout_metrics(whole)
    assert alone.pop("left_out_fraction") == 0.0
    assert values == alone


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_stay_visible(bad):
    rows = [scored(Category.EHD, reward=bad, cost=0.0), scored(Category.EHD, reward=-bad, cost=0.0)]
    assert math.isnan(rollout_metrics(rows)["reward"])


def test_mixture_metrics():
    assert mixture_metrics({Category.EHD: 0.25, Category.GENERAL: 0.75}) == {
        "mixture_EHD": 0.25,
        "mixture_GENERAL": 0.75,
    }


def test_every_row_has_a_source_and_every_source_has_rows():
    everything = [scored(category, reward=0.0, cost=0.0) for category in Category]
    produced = (
        set(rollout_metrics(everything))
        | set(mixture_metrics(dict.fromkeys(Category, 0.2)))
        | FROM_THE_DRIVER
        | FROM_THE_LEARNER
    )
    assert produced == set(METRICS)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_row_says_what_it_is(name):
    metric = METRICS[name]
    assert metric.unit
    assert metric.meaning
    assert metric.reduction.split()[0] in {"mean", "std", "sum", "max", "last"}


def test_an_unknown_name_is_refused_with_the_nearest():
    require_known(["kl", "reward"])
    with pytest.raises(ValueError, match="did you mean 'clip_fraction'"):
        require_known(["reward", "clip_fracton"])
