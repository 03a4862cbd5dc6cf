"""The tables of estimators, multipliers and KL weights, against the settings they serve."""

from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter

from equilibrate.config.constraint import Constraint
from equilibrate.config.train import ADVANTAGES, AdvantageName, PPOConfig
from equilibrate.ppo.estimators import ESTIMATORS, Signal
from equilibrate.ppo.kl import CONTROLLERS
from equilibrate.ppo.lagrangian import MULTIPLIERS
from equilibrate.run.controllers import CostController, KLController

ONES = torch.ones(2, 3)


@pytest.mark.parametrize("name", get_args(AdvantageName))
def test_every_name_of_the_settings_has_an_estimator_and_its_needs(name):
    assert set(ESTIMATORS) == set(ADVANTAGES) == set(get_args(AdvantageName))
    signal = Signal(
        scores=torch.tensor([1.0, 2.0]),
        penalties=0 * ONES,
        rewards=ONES,
        values=0.5 * ONES,
        response_mask=torch.tensor([[False, True, True], [False, True, False]]),
        groups=torch.tensor([0, 0]),
    )
    advantages, returns = ESTIMATORS[name](signal, PPOConfig(advantage=name))
    assert advantages.shape == returns.shape == ONES.shape
    assert not advantages[~signal.response_mask].any()
    assert bool(returns.any()) == ADVANTAGES[name].critics


def tags(annotation: object) -> set[str]:
    """Values of `type` in a union of settings."""
    found = TypeAdapter(annotation).json_schema()
    return {
        definition["properties"]["type"]["const"]
        for definition in found["$defs"].values()
        if "type" in definition["properties"]
    }


def test_every_kind_of_constraint_is_in_the_table():
    assert tags(Constraint) == set(MULTIPLIERS)
    for kind in MULTIPLIERS:
        settings = TypeAdapter(Constraint).validate_python({"type": kind, "init": 0.5})
        assert CostController(settings).value == 0.5


def test_every_kind_of_kl_weight_is_in_the_table():
    annotation = PPOConfig.model_fields["kl"].annotation
    assert {kind.model_fields["type"].default for kind in get_args(annotation)} == set(CONTROLLERS)
    for kind in CONTROLLERS:
        settings = PPOConfig.model_validate({"kl": {"type": kind, "coef": 0.25}}).kl
        assert KLController(settings).value == 0.25
