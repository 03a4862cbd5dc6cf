from __future__ import annotations

import pytest

from equilibrate.config.files import load_run_config, load_settings, parse_settings
from equilibrate.config.fit import USUAL_LR, FitConfig
from equilibrate.config.formats import SETTINGS_FORMAT
from equilibrate.errors import ConfigError
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.types import Category

WORLD = {"fdc": {"amounts": {"EHD": 10}}}
REMEDY = {"objective": {"type": "sft"}, "fdc": {"remedy": {"plain": 20, "noted": 10}}}
OWN = {"data": {"policy": "a", "train": "b", "evaluation": "c"}}


def parse(**tree):
    return parse_settings(FitConfig, tree)


def test_dpo_is_the_default_and_needs_no_scorers():
    config = parse(**WORLD)
    assert config.objective.type == "dpo"
    assert not config.needs_scorers
    assert config.fdc.amounts == {Category.EHD: 10}


@pytest.mark.parametrize("tree", [{"ama": {}}, {"objective": {"type": "ars"}}])
def test_masks_and_rejection_sampling_need_scorers(tree):
    assert parse(**WORLD, **tree).needs_scorers


def test_a_key_of_an_objective_keeps_the_default_type():
    assert parse(**WORLD, objective={"beta": 0.5}).objective.beta == 0.5


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, r"fdc.amounts \(\{\}\) must say how many examples"),
        ({"fdc": {"amounts": {"EHD": -1}}}, "amounts must be >= 0"),
        ({"fdc": {"amounts": {"EHD": 0}}}, "one amount at least"),
        (WORLD | {"batch_size": 3, "trainer": {"num_workers": 2}}, r"batch_size \(3\).*try 2"),
        (WORLD | {"ama": {"source": "critics"}}, "ama.source.*try ama.source=both"),
        (WORLD | {"objective": {"type": "dop"}}, r"objective.type \('dop'\).*did you mean 'dpo'"),
        (WORLD | {"objectiv": {}}, "objectiv is not a known key; did you mean 'objective'"),
        ({"data": {"policy": "a"}}, "data.train must be given too"),
        (WORLD | {"data": {"train": "a"}}, "data.train is given without data.policy"),
        (
            OWN | {"objective": {"type": "cost"}},
            r"data.evaluation measures a policy.*\(cost\) trains a scorer",
        ),
        (OWN | {"ama": {}, "objective": {"type": "cost"}}, r"ama masks .* \(cost\).*ama=off"),
        (OWN | {"objective": {"type": "reward", "held_out_fraction": 0}}, "held_out_fraction"),
        (WORLD | {"ama": {}, "objective": {"type": "bfpo"}}, r"ama needs .* \(bfpo\).*ama=off"),
        (WORLD | {"ama": {"dead_band": -0.1}}, "ama.dead_band"),
        (WORLD | {"ama": {"normalizer": "all"}}, r"ama.normalizer \(all\).*mean over pairs"),
        (
            WORLD | {"ama": {"mode": "forward"}, "objective": {"type": "ars"}},
            r"ama.mode \(forward\).*\(ars\) has none",
        ),
        (OWN | {"ama": {}}, "data.reward must be given too"),
        (OWN | {"fdc": {"mislabelled_fraction": 0.1}}, r"fdc.mislabelled_fraction \(0.1\)"),
        (WORLD | {"rollout": {"max_new_tokens": 2048}}, "rollout.max_new_tokens"),
        (REMEDY | {"objective": {"type": "dpo"}}, r"fdc.remedy .* \(dpo\).*objective.type=sft"),
        (REMEDY | {"fdc": {"remedy": {"plain": 0}}}, r"remedy .*must be > 0.*plain: 1200"),
        (REMEDY | {"fdc": {"remedy": {"palin": 1}}}, "palin"),
        (
            REMEDY | {"fdc": {"remedy": {"plain": 1}, "amounts": {"EHD": 1}}},
            "amounts and remedy are two data sets",
        ),
        (
            REMEDY | {"fdc": {"remedy": {"plain": 1}, "mislabelled_fraction": 0.1}},
            r"fdc.mislabelled_fraction \(0.1\) is of fdc.amounts",
        ),
        (
            OWN | {"objective": {"type": "sft"}, "fdc": {"remedy": {"plain": 1}}},
            r"fdc.remedy .*is for the built-in world",
        ),
    ],
)
def test_what_breaks_a_rule_is_named(tree, message):
    with pytest.raises(ConfigError, match=message):
        parse(**tree)


def test_a_remedy_needs_no_amounts():
    assert parse(**REMEDY).fdc.amounts == {}


def test_own_data_need_no_amounts():
    assert parse(**OWN).fdc.amounts == {}


def test_amounts_are_replaced_whole(tmp_path):
    file = tmp_path / "fit.yaml"
    file.write_text("fdc: {amounts: {EHD: 5, IHD: 5}}\n")
    config = load_settings(FitConfig, [file], ["fdc.amounts={MHD: 2}"])
    assert config.fdc.amounts == {Category.MHD: 2}


def test_a_run_folder_says_what_kind_of_run_it_holds(tmp_path):
    (tmp_path / "config.yaml").write_text(
        f"settings_format: {SETTINGS_FORMAT}\n"
        "objective: {type: sft}\nfdc: {amounts: {EHD: 1}}\n"
    )
    assert isinstance(load_run_config(tmp_path), FitConfig)
    (tmp_path / "config.yaml").write_text(f"settings_format: {SETTINGS_FORMAT}\niterations: 3\n")
    assert load_run_config(tmp_path).iterations == 3


@pytest.mark.parametrize(
    ("objective", "lr"), [({}, 5e-7), ({"type": "sft"}, 1e-5), ({"type": "derta"}, 2e-5)]
)
def test_the_learning_rate_is_that_of_the_objective_unless_it_is_given(objective, lr):
    assert parse(**OWN, objective=objective).lr == lr
    assert parse(**OWN, objective=objective, lr=3e-4).lr == 3e-4


def test_every_objective_has_its_learning_rate():
    assert set(OBJECTIVES) <= set(USUAL_LR)


def test_a_broken_objective_is_told_as_ever():
    for broken in ("dpo", 3, None, {"type": ["dpo"]}, {"type": "dop"}):
        with pytest.raises(ConfigError, match=r"^objective"):
            parse(**OWN, objective=broken)
