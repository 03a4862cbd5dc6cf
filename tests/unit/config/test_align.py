"""What a journey's few settings become: the settings of each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from equilibrate.config.align import AlignConfig, Journey
from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.inputs import as_written
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError

INPUTS = {"policy": "chat", "pairs": "pairs.jsonl", "prompts": "prompts.jsonl", "output": "out"}


def journey(**changes: Any) -> Journey:
    return Journey(parse_settings(AlignConfig, {**INPUTS, **changes}))


def names(trip: Journey) -> list[str]:
    return [step.name for step in trip.steps()]


def test_each_step_starts_from_what_those_before_it_made() -> None:
    trip = journey(demonstrations="answers.jsonl", evaluation="held_out.jsonl", common={"seed": 7})
    sft, reward, cost, align = trip.steps(budget=-0.25)
    assert as_written(sft.config.data.train) == "answers.jsonl"
    assert sft.config.data.policy == "chat"
    for step in (reward, cost):
        assert isinstance(step.config, FitConfig)
        assert step.config.trains == step.name
        assert step.config.data.policy == str(sft.model) == "out/sft/aligned"
        assert as_written(step.config.data.train) == "pairs.jsonl"
        assert step.config.output == f"out/{step.name}"
    assert isinstance(align.config, TrainConfig)
    data = align.config.data
    assert (data.policy, data.reward, data.cost) == (
        "out/sft/aligned", "out/reward/reward", "out/cost/cost",
    )  # fmt: skip
    assert (as_written(data.prompts), as_written(data.evaluation)) == (
        "prompts.jsonl",
        "held_out.jsonl",
    )
    assert align.config.constraint.budget == -0.25
    assert {step.config.seed for step in trip.steps()} == {7}


def test_what_is_given_is_not_made() -> None:
    assert names(journey()) == ["reward", "cost", "align"]
    assert names(journey(cost="mine")) == ["reward", "align"]
    trip = journey(cost="mine", reward="theirs", pairs="")
    (align,) = trip.steps()
    assert (align.config.data.reward, align.config.data.cost) == ("theirs", "mine")


def test_an_offline_objective_needs_scorers_only_for_a_mask() -> None:
    (step,) = journey(by="dpo", prompts="").steps()
    assert as_written(step.config.data.train) == "pairs.jsonl"
    assert step.config.data.cost == ""
    assert names(journey(by="dpo", steps={"align": {"ama": {"source": "cost"}}})) == [
        "reward", "cost", "align",
    ]  # fmt: skip
    # The mask with all its defaults is on; `off` is off in every spelling.
    for ama, count in (({}, 3), ("off", 1), (False, 1)):
        assert len(names(journey(by="dpo", steps={"align": {"ama": ama}}))) == count
    *_, ars = journey(by="ars").steps()
    assert as_written(ars.config.data.train) == "prompts.jsonl"


def test_a_steps_own_settings_win_and_common_ones_reach_those_who_have_them() -> None:
    trip = journey(
        common={"max_length": 256, "iterations": 3, "rollout": {"temperature": 0.6}},
        steps={"cost": {"lr": 3e-5}, "align": {"constraint": {"budget": -1.0}}},
    )
    reward, cost, align = trip.steps(budget=0.5)
    assert (reward.config.max_length, cost.config.lr, reward.config.lr) == (256, 3e-5, 2e-5)
    assert align.config.iterations == 3
    assert align.config.constraint.budget == -1.0
    assert all(step.config.rollout.temperature == 0.6 for step in (reward, cost, align))
    # Nothing of one step is left in the next, or in the settings themselves.
    assert trip.config.common["rollout"] == {"temperature": 0.6}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": ""}, r"policy \(''\) must name .*try policy: models/my-chat"),
        ({"pairs": ""}, r"pairs \(''\) must name"),
        ({"prompts": ""}, r"prompts \(''\) must name"),
        ({"by": "dpo", "reward": "r", "cost": "c", "pairs": ""}, r"pairs \(''\) must name"),
        ({"by": "grpo"}, "by .*'grpo'"),
        ({"max_unsafe_share": 0.5}, "max_unsafe_share"),
        ({"polcy": "chat"}, "polcy is not a known key"),
        ({"common": {"constraint": {"budget": -1}}}, r"common\.constraint differs from step"),
        ({"common": {"data": {"train": "t"}}}, r"common\.data\.train differs from step"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        journey(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": {"cost": {"learning_rate": 1.0}}}, r"steps\.cost: learning_rate is not a known"),
        ({"common": {"sead": 1}}, r"common\.sead is a setting of no step; did you mean 'seed'\?$"),
        ({"common": {"rolout": {}}}, r"common\.rolout is a .*; did you mean 'rollout'\?$"),
    ],
)
def test_a_wrong_setting_of_a_step_names_the_step(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(journey(**changes).steps())


def test_the_models_of_a_journey_lie_in_its_folder() -> None:
    trip = journey(demonstrations="answers.jsonl")
    assert trip.model("align") == Path("out/align/aligned")
    assert trip.scorer("cost") == "out/cost/cost"


def test_a_share_that_lambda_follows_needs_no_proposed_budget() -> None:
    trip = journey(steps={"align": {"constraint": {"max_unsafe_share": 0.02}}})
    assert not trip.needs_budget
    *_, align = trip.steps()
    assert align.config.constraint.bounded == ("unsafe_fraction", 0.02)
    assert journey(steps={"align": {"constraint": {"max_unsafe_share": None}}}).needs_budget


def test_each_step_states_the_licences_of_what_it_reads() -> None:
    trip = journey(licences={"pairs": "cc-by-nc-4.0", "prompts": "mit", "policy": "apache-2.0"})
    stated = {step.name: step.config.data.licences for step in trip.steps()}
    assert stated == {
        "reward": {"policy": "apache-2.0", "train": "cc-by-nc-4.0"},
        "cost": {"policy": "apache-2.0", "train": "cc-by-nc-4.0"},
        "align": {"policy": "apache-2.0", "prompts": "mit"},
    }
    with pytest.raises(ConfigError, match=r"licences.*'pair' must be an input's key \(policy, "):
        journey(licences={"pair": "mit"})


def test_a_licence_of_a_step_is_of_an_input() -> None:
    with pytest.raises(ConfigError, match=r"data.licences.*'seed' must be an input's key"):
        parse_settings(FitConfig, {"data": {"licences": {"seed": "mit"}}})


@pytest.mark.parametrize(
    ("key", "by"), [("pairs", "ppo"), ("evaluation", "ppo"), ("prompts", "ars")]
)
def test_a_share_of_files_that_are_read_whole_is_refused_by_its_own_key(key: str, by: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} is read whole"):
        journey(by=by, **{key: [{"file": "a", "share": 1}, {"file": "b", "share": 1}]})
