from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from equilibrate.config.constraint import (
    Constraint,
    LogSgdMultiplier,
    PidMultiplier,
    ProjectedMultiplier,
)
from equilibrate.config.train import AdaptiveKL, FixedKL, TrainConfig
from equilibrate.errors import NumericsError
from equilibrate.run.controllers import CostController, KLController, KLStop, why_stopped
from equilibrate.types import Category
from tests.fakes import make_prompt, make_rollout, make_scored


def episode(category: Category, cost: float):  # type: ignore[no-untyped-def]
    return make_scored(make_rollout(make_prompt(category=category)), cost=cost)


UPPER = {"max_unsafe_share": 0.5, "by_upper_bound": True}
EPISODES = [episode(Category.GENERAL, -3.0), episode(Category.EHD, 1.0)]


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        # Safety prompts alone: J_C = 1, violation 1 - 0.5 = 0.5.
        (ProjectedMultiplier(init=1.0, lr=0.1, budget=0.5), 1.0 + 0.1 * 0.5),
        # All prompts: J_C = (-3 + 1) / 2 = -1, violation -1.5.
        (ProjectedMultiplier(init=1.0, lr=0.1, budget=0.5, scope="all"), 1.0 - 0.1 * 1.5),
        (LogSgdMultiplier(init=2.0, lr=0.1, budget=0.5), 2.0 * math.exp(0.1 * 2.0 * 0.5)),
        # I starts at 1 / 0.1 = 10 and grows by 0.5: 0.4 * 0.5 + 0.1 * 10.5.
        (PidMultiplier(init=1.0, kp=0.4, ki=0.1, kd=0.0, budget=0.5), 0.2 + 1.05),
        (ProjectedMultiplier(init=1.0, lr=0.1, budget=0.5, delay=1), 1.0),
        (ProjectedMultiplier(init=1.0, lr=9.0, budget=0.5, max=2.0), 2.0),
        # One unsafe answer of one counts 4, and 0.05 of them 0.2: violation 3.8.
        (ProjectedMultiplier(init=1.0, lr=0.1, max_unsafe_share=0.05), 1.0 + 0.1 * 3.8),
        # Of all prompts one of two is unsafe, however little the other one costs: 2 - 0.2.
        (ProjectedMultiplier(init=1.0, lr=0.1, max_unsafe_share=0.05, scope="all"), 1.18),
        (LogSgdMultiplier(init=2.0, lr=0.1, max_unsafe_share=0.05), 2.0 * math.exp(0.2 * 3.8)),
        (PidMultiplier(init=1.0, kp=0.4, ki=0.1, max_unsafe_share=0.05), 1.52 + 0.1 * 13.8),
        # One unsafe of one: Wilson's interval ends at 1.
        (ProjectedMultiplier(init=1.0, lr=0.1, **UPPER, scope="safety"), 1.0 + 0.1 * 2.0),
        # One of two: centre 0.5, half width 1.96 / (1 + 1.92) * sqrt(0.125 + 0.24) = 0.4055.
        (ProjectedMultiplier(init=1.0, lr=0.1, **UPPER, scope="all"), 1.0 + 0.1 * 1.622),
        (None, 0.0),
    ],
)
def test_multiplier_after_one_observation(constraint, expected) -> None:  # type: ignore[no-untyped-def]
    controller = CostController(constraint)
    controller.observe(EPISODES)
    assert controller.value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "constraint", [ProjectedMultiplier(), LogSgdMultiplier(), PidMultiplier(delay=1)]
)
def test_multiplier_moves_on_fresh_cost_alone(constraint) -> None:  # type: ignore[no-untyped-def]
    controller = CostController(constraint)
    controller.observe(EPISODES)
    before = controller.state_dict()
    for costs in ([-3.0], []):
        # Everyday prompts are out of scope.
        controller.observe([episode(Category.GENERAL, cost) for cost in costs])
    assert controller.state_dict() == before
    controller.observe([episode(Category.IHD, 2.0)])
    assert controller.state_dict() != before


def test_a_cost_that_is_no_number_counts_as_neither_safe_nor_unsafe() -> None:
    for changes in ({}, {"by_upper_bound": True}):
        controller = CostController(PidMultiplier(max_unsafe_share=0.05, **changes))
        for cost in (math.nan, math.inf):
            with pytest.raises(NumericsError, match="must be finite"):
                controller.observe([episode(Category.EHD, cost)])


def test_a_share_that_was_saved_is_gone_on_with() -> None:
    constraint = ProjectedMultiplier(max_unsafe_share=0.2, window=3)
    whole, resumed = CostController(constraint), CostController(constraint)
    for cost in (-5.0, 0.0, 7.0):
        whole.observe([episode(Category.EHD, cost)])
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for controller in (whole, resumed):
        controller.observe([episode(Category.MHD, 0.1)])
    # 0, 4 and 4 of the last three answers: a cost of 0 is safe.
    assert whole.state_dict() == resumed.state_dict()
    assert whole.state_dict()["window"]["costs"] == [0.0, 4.0, 4.0]


def settle(constraint: Constraint, seed: int) -> tuple[float, int]:
    """400 iterations of 64 answers by a policy whose log-odds of an unsafe one, 0.5 at first, move
    by a twentieth of the way to 0.5 - 2 lambda in each.

    Returns: share of unsafe answers in the last 150, and the first iteration within 1.2 of 0.05.
    """
    rng, controller = np.random.default_rng(seed), CostController(constraint)
    unsafe, safe = episode(Category.EHD, 9.0), episode(Category.EHD, -0.1)
    log_odds, shares = 0.5, []
    for _ in range(400):
        shares.append(1 / (1 + math.exp(-log_odds)))
        controller.observe([unsafe if one else safe for one in rng.random(64) < shares[-1]])
        log_odds += 0.05 * (0.5 - 2 * controller.value - log_odds)
    return float(np.mean(shares[-150:])), next(i for i, s in enumerate(shares) if s <= 0.06)


@pytest.mark.parametrize(
    ("kind", "iterations"),
    [(LogSgdMultiplier, 30), (ProjectedMultiplier, 80), (PidMultiplier, 200)],
)
def test_the_usual_gains_reach_a_share_and_hold_it(kind: Any, iterations: int) -> None:
    """Without the weight of an unsafe answer pid stands at 0.08 after 400 iterations."""
    for seed in range(3):
        share, reached = settle(kind(max_unsafe_share=0.05), seed)
        assert share == pytest.approx(0.05, abs=0.006)
        assert reached <= iterations


def test_kl_weight_kinds() -> None:
    fixed, adaptive = (
        KLController(FixedKL(coef=0.3)),
        KLController(AdaptiveKL(coef=0.3, target=0.125)),
    )
    # The fakes' KL is -0.5 - (-0.75) = 0.25 nats a token, twice the target: error clipped to 0.2,
    # and two rollouts over a horizon of 10,000.
    for weight in (fixed, adaptive):
        weight.observe(EPISODES)
    assert fixed.value == 0.3
    assert adaptive.value == pytest.approx(0.3 * (1 + 0.2 * 2 / 10_000), rel=1e-12)


@pytest.mark.parametrize(
    ("stop_at", "values", "reached"),
    [
        (0.1, {"kl": 0.1}, False),
        (0.1, {"kl": 0.1001}, True),
        (0.1, {"kl": math.nan}, False),
        (0.1, {}, False),
        (None, {"kl": 99.0}, False),
    ],
)
def test_kl_stop(stop_at: float | None, values: dict[str, float], reached: bool) -> None:
    stop = KLStop(stop_at)
    stop.observe(values)
    assert stop.is_reached is reached
    again = KLStop(stop_at)
    again.load_state_dict(stop.state_dict())
    again.observe({"policy_loss": 1.0})  # an iteration that was skipped before it had a KL
    assert again.is_reached is reached


def test_the_reason_is_one_of_a_run_that_ended_early_alone() -> None:
    config = TrainConfig.model_validate({"iterations": 10, "ppo": {"kl": {"stop_at": 0.1}}})
    assert why_stopped(config, 7, 0.25) == (
        "the KL to the reference, 0.25 nats per token in iteration 6, is above ppo.kl.stop_at "
        "(0.1); 7 of 10 iterations were done"
    )
    assert why_stopped(config, 10, 0.25) == ""  # the last one was above it
    assert why_stopped(config, 7, 0.1) == ""
    assert why_stopped(config, None, None) == ""


def test_every_weight_of_the_kl_can_stop() -> None:
    for kind in ("fixed", "adaptive"):
        tree = {"ppo": {"kl": {"type": kind, "stop_at": 0.5}}}
        config = TrainConfig.model_validate(tree)
        assert KLController(config.ppo.kl).value == 0.02
        assert config.ppo.kl.stop_at == 0.5
