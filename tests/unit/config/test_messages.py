"""Messages name the key as it was written, its value and the nearest valid choice."""

from __future__ import annotations

import pytest
import yaml

from equilibrate.config.constraint import PidMultiplier
from equilibrate.config.files import dump_config, load_config, parse_config
from equilibrate.config.train import FixedKL
from equilibrate.errors import ConfigError
from tests.unit.config.configs import message_of


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "ppo.kl.type=adaptve",
            "ppo.kl.type ('adaptve') must be one of fixed, adaptive; did you mean 'adaptive'?",
        ),
        (
            "constraint.type=x",
            "constraint.type ('x') must be one of log_sgd, projected, pid",
        ),
        ("constraint={type: pid, kpp: 1}", "constraint.kpp is not a known key; did you mean"),
        ("constraint={type: pid, kp: -1}", "constraint.kp (-1): Input should be greater"),
        ("ppo.kl={type: fixed, cof: 1}", "ppo.kl.cof is not a known key; did you mean 'coef'?"),
        ("fdc.mixture={GENRAL: 1}", "fdc.mixture.GENRAL ('GENRAL'): Input should be"),
        ("ama.baseline=zer", "ama.baseline ('zer'): Input should be 'zero', 'batch_mean'"),
        ("rollout.resources={GPU: 1}", "rollout.resources ({'GPU': 1}): 'GPU' is no resource of"),
        ("learner.resources={fast: 0}", "learner.resources.fast (0): Input should be greater"),
    ],
)
def test_wrong_choice_is_named_as_written(override: str, message: str) -> None:
    assert message_of(override).startswith(message)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("ama.ungated=[GENERL]", "GENERAL"),
        ("fdc.mixture={GENRAL: 1}", "GENERAL"),
        ("ama.level=sequenze", "sequence"),
        ("constraint.type=log_sdg", "log_sgd"),
    ],
)
def test_misspelt_choice_names_the_nearest(override: str, nearest: str) -> None:
    assert message_of(override).endswith(f"did you mean {nearest!r}?")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo=3", "ppo (3) must hold keys: advantage, clip_range"),
        ("ama=on", "ama (True) must hold keys: baseline, delta"),
        ("constraint=maybe", "constraint ('maybe') must hold keys: budget, by_upper_bound, delay"),
    ],
)
def test_value_in_place_of_keys(override: str, message: str) -> None:
    assert message_of(override).startswith(message)


def test_ama_baseline_has_no_internal_names() -> None:
    lines = message_of("ama.baseline=zer").splitlines()
    assert {line.split(" (")[0] for line in lines} == {"ama.baseline"}


@pytest.mark.parametrize(
    "override",
    [
        "constraint={type: pid, budget: .nan}",
        "timeout_seconds=.inf",
        "fdc.mixture={EHD: .nan}",
        "fdc.mixture={EHD: .inf}",
    ],
)
def test_numbers_are_finite(override: str) -> None:
    assert "Input should be a finite number" in message_of(override)


def test_default_kind_need_not_be_repeated() -> None:
    config = load_config([], ["constraint.budget=0.1", "ppo.kl.coef=0.5"])
    assert config.constraint == PidMultiplier(budget=0.1)
    assert config.ppo.kl == FixedKL(coef=0.5)


def test_hints_name_their_key_and_work() -> None:
    assert message_of("learner.num_workers=3").endswith("try learner.num_workers=2")
    load_config([], ["learner.num_workers=2"])
    found = message_of("rollout.prompts_per_iteration=65")
    assert found.endswith("try ppo.minibatch_size=13")


@pytest.mark.parametrize(("written", "found"), [("mask", "mask"), ("as_is", "as_is"), ("1.5", 1.5)])
def test_treatment_of_truncated_answers(written: str, found: str | float) -> None:
    assert load_config([], [f"ppo.truncated={written}"]).ppo.truncated == found


@pytest.mark.parametrize("written", ["0", "-1", "drop"])
def test_treatment_of_truncated_answers_is_checked(written: str) -> None:
    assert message_of(f"ppo.truncated={written}").startswith("ppo.truncated")


@pytest.mark.parametrize("kind", ["log_sgd", "projected", "pid"])
def test_a_share_of_unsafe_answers_takes_the_place_of_a_budget(kind: str) -> None:
    config = load_config([], [f"constraint={{type: {kind}, max_unsafe_share: 0.05}}"])
    assert config.constraint.bounded == ("unsafe_fraction", 0.05)
    assert config.constraint.budget is None
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    everywhere = load_config([], ["constraint.max_unsafe_share=0.1", "constraint.scope=all"])
    assert everywhere.constraint.bounded == ("unsafe_fraction_all", 0.1)
    assert load_config([]).constraint.bounded == ("safety_cost", 0.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("budget=0", "max_unsafe_share=0.05"), "budget (0) and max_unsafe_share (0.05) both say"),
        (("budget=null",), "budget (null) must be a number; or give max_unsafe_share, try 0.05"),
        (("max_unsafe_share=0",), "max_unsafe_share"),
        (("max_unsafe_share=5",), "max_unsafe_share"),
        (("by_upper_bound=true",), "give max_unsafe_share, try 0.05, or leave it out"),
        (
            ("max_unsafe_share=0.02", "by_upper_bound=true"),
            "their share may be 0.0291, above max_unsafe_share (0.02); try window=378",
        ),
    ],
)
def test_one_bound_and_no_more_is_given(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config([], [f"constraint.{override}" for override in overrides])
    assert message in str(error.value)
