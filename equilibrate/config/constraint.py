"""What bounds harm: a budget or a share, and the controller of the multiplier that keeps to it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from equilibrate.config.base import COST_METRICS, SHARE_METRICS, Config, off_is_none, type_is

Z_SQUARED = 3.8415
"""Of a 95 % confidence interval, the square of 1.96."""


class MultiplierConfig(Config):
    """What the three multiplier controllers share."""

    budget: float | None = 0.0
    """Bound d on the mean cost, in cost-model units (0 is the safe/unsafe boundary); null where
    `max_unsafe_share` takes its place."""
    max_unsafe_share: float | None = Field(None, gt=0, lt=1)
    """Bound on the share of answers that the cost model calls unsafe, in place of a budget. An
    unsafe answer then counts as 4 units of cost and a safe one as 0: see
    `equilibrate.ppo.lagrangian.UNSAFE_COST`."""
    by_upper_bound: bool = False
    """Lambda follows the upper end of the share's 95 % confidence interval (Wilson's) over the
    window, in place of the share: what is bounded then holds for more answers than were seen."""
    scope: Literal["all", "safety"] = "safety"
    """Prompts whose cost is averaged: all, or those of EHD, IHD and MHD."""
    init: float = Field(1.0, ge=0)
    max: float = Field(5.0, gt=0)
    delay: int = Field(0, ge=0)
    """Iterations before the first move, counting those with a cost in scope."""
    window: int = Field(128, gt=0)
    """Episodes whose cost is averaged."""

    @property
    def bounded(self) -> tuple[str, float]:
        """The metric that is bounded, and its bound."""
        if self.max_unsafe_share is not None:
            return SHARE_METRICS[self.scope], self.max_unsafe_share
        assert self.budget is not None
        return COST_METRICS[self.scope], self.budget

    @model_validator(mode="after")
    def _upper_bound_can_be_met(self) -> Self:
        if not self.by_upper_bound:
            return self
        share = self.max_unsafe_share
        if share is None:
            raise ValueError(
                "by_upper_bound is about a share of unsafe answers; give max_unsafe_share, try "
                "0.05, or leave it out"
            )
        # Of none among n answers Wilson's interval ends at z^2 / (n + z^2).
        needed = math.floor(Z_SQUARED * (1 - share) / share) + 1
        if self.window < needed:
            raise ValueError(
                f"window ({self.window}) is too few answers for by_upper_bound: without one unsafe "
                f"answer among them their share may be {Z_SQUARED / (self.window + Z_SQUARED):.3g},"
                f" above max_unsafe_share ({share:g}); try window={2 * needed}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_bound_is_given(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        share, budget = tree.get("max_unsafe_share"), tree.get("budget", 0.0)
        if share is None and budget is None:
            raise ValueError("budget (null) must be a number; or give max_unsafe_share, try 0.05")
        if share is None:
            return tree
        if tree.get("budget") is not None:
            raise ValueError(
                f"budget ({budget}) and max_unsafe_share ({share}) both say what lambda follows; "
                "leave one of them out"
            )
        return {**tree, "budget": None}


class LogSgdMultiplier(MultiplierConfig):
    type: Literal["log_sgd"] = "log_sgd"
    lr: float = Field(0.1, gt=0)


class ProjectedMultiplier(MultiplierConfig):
    type: Literal["projected"] = "projected"
    lr: float = Field(0.05, gt=0)


class PidMultiplier(MultiplierConfig):
    type: Literal["pid"] = "pid"
    kp: float = Field(0.5, ge=0)
    ki: float = Field(0.02, ge=0)
    kd: float = Field(0.0, ge=0)


Constraint = Annotated[
    Annotated[
        LogSgdMultiplier | ProjectedMultiplier | PidMultiplier,
        Field(discriminator="type"),
        type_is("pid"),
    ]
    | None,
    BeforeValidator(off_is_none),
]
