"""From settings to the two numbers that steer an update: the multiplier and the KL weight."""

from __future__ import annotations

from equilibrate.config import (
    AdaptiveKL,
    Constraint,
    FixedKL,
    LogSgdMultiplier,
    PidMultiplier,
    ProjectedMultiplier,
)
from equilibrate.ppo import kl, lagrangian
from equilibrate.ppo.controllers import CostConstraint, KLWeight
from equilibrate.types import Category


def make_cost_constraint(constraint: Constraint) -> CostConstraint:
    """The controller of lambda; None switches the constraint off, which is plain PPO."""
    if constraint is None:
        return CostConstraint(lagrangian.NoMultiplier(), lagrangian.CostWindow(1), ())
    covers_all = constraint.scope == "all"
    return CostConstraint(
        lagrangian.DelayedMultiplier(_make_multiplier(constraint), delay=constraint.delay),
        lagrangian.CostWindow(constraint.window),
        [category for category in Category if covers_all or category.is_safety],
    )


def make_kl_weight(config: FixedKL | AdaptiveKL) -> KLWeight:
    match config:
        case FixedKL(coef=coef):
            return KLWeight(kl.FixedKL(coef))
        case AdaptiveKL(coef=coef, target=target, horizon=horizon):
            return KLWeight(kl.AdaptiveKL(coef, target=target, horizon=horizon))


def _make_multiplier(
    constraint: LogSgdMultiplier | ProjectedMultiplier | PidMultiplier,
) -> lagrangian.Multiplier:
    bounds = {"init": constraint.init, "maximum": constraint.max, "budget": constraint.budget}
    match constraint:
        case LogSgdMultiplier(lr=lr):
            return lagrangian.LogSgdMultiplier(lr=lr, **bounds)
        case ProjectedMultiplier(lr=lr):
            return lagrangian.ProjectedMultiplier(lr=lr, **bounds)
        case PidMultiplier(kp=kp, ki=ki, kd=kd):
            return lagrangian.PidMultiplier(kp=kp, ki=ki, kd=kd, **bounds)
