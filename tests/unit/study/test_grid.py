"""Which runs a study has, in which order, and which of them are one."""

from __future__ import annotations

from pathlib import Path

import pytest

from equilibrate.config.files import parse_settings
from equilibrate.config.study import StudyConfig
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError
from equilibrate.study import expand, plan_runs, run_key
from tests.unit.study.studies import TREE, plan, resolve, study


def test_early_results_cover_all_arms():
    specs = expand(study(seeds=[3, 0]), {})
    assert [(spec.seed, spec.arm) for spec in specs] == [
        (3, "few"),
        (3, "many"),
        (3, "offline"),
        (0, "few"),
        (0, "many"),
        (0, "offline"),
    ]


def test_the_seed_is_of_the_run_and_of_its_world():
    base = {"train": {"seed": 99, "sandbox": {"seed": 99, "base_steps": 7}}}
    tree = expand(study(seeds=[3]), base)[0].tree
    assert tree["seed"] == 3
    assert tree["sandbox"] == {"seed": 3, "base_steps": 7}


def test_layers_lie_in_their_order_and_kinds_apart():
    base = {"train": {"rows": 1, "ppo": {"epochs": 1, "gamma": 1.0}, "rate": 2}}
    few, _, offline = expand(study(seeds=[0]), base)
    assert few.tree["rows"] == 10  # the arm over the base
    assert few.tree["ppo"] == {"epochs": 2, "gamma": 1.0}  # common over the base, key by key
    assert few.tree["rate"] == 2
    assert "ppo" not in offline.tree


def test_an_arm_leaves_no_trace_in_the_next():
    arms = {
        "first": {"kind": "train", "set": {"ppo": {"kl": {"coef": 0.5}}}},
        "second": {"kind": "train"},
    }
    config = study(arms=arms, questions=[], common={"train": {"ppo": {"kl": {"type": "fixed"}}}})
    base = {"train": {"ppo": {"kl": {"target": 1}}}}
    first, second = expand(config, base)[:2]
    assert first.tree["ppo"]["kl"] == {"target": 1, "type": "fixed", "coef": 0.5}
    assert second.tree["ppo"]["kl"] == {"target": 1, "type": "fixed"}
    assert base == {"train": {"ppo": {"kl": {"target": 1}}}}


def test_equal_settings_are_run_once_and_shared():
    arms = {
        "default": {"kind": "train"},
        "other": {"kind": "train", "set": {"rows": 7}},
        "same": {"kind": "train", "set": {"rows": 50}},  # what `resolve` fills in anyway
        "fit": {"kind": "fit"},
    }
    config = study(arms=arms, questions=[], seeds=[0, 1], common={})
    runs = plan(config)
    # The same settings of another kind are another run.
    shared = [("default", "same"), ("other",), ("fit",)]
    assert [(run.seed, run.arms) for run in runs] == [(s, arms) for s in (0, 1) for arms in shared]
    assert len({run.key for run in runs}) == 6


def test_the_key_is_of_all_settings_but_the_output():
    config = {"output": "a", "seed": 0, "ppo": {"epochs": 1, "clip": 0.2}}
    key = run_key("train", config)
    assert len(key) == 12
    assert set(key) <= set("0123456789abcdef")
    reordered = {"ppo": {"clip": 0.2, "epochs": 1}, "seed": 0, "output": "b"}
    assert run_key("train", reordered) == key
    assert run_key("fit", config) != key
    assert run_key("train", {**config, "seed": 1}) != key
    assert run_key("train", {**config, "ppo": {"epochs": 1, "clip": 0.3}}) != key
    assert run_key("train", {**config, "ama": None}) != key


def test_with_the_real_settings_a_written_default_is_no_other_run():
    def real(kind, tree):
        return parse_settings(TrainConfig, tree).model_dump(mode="json")

    arms = {
        "plain": {"kind": "train"},
        "written": {"kind": "train", "set": {"ppo": {"clip_range": 0.2}, "output": "elsewhere"}},
        "masked": {"kind": "train", "set": {"ama": {}}},
    }
    config = study(arms=arms, questions=[], seeds=[0], common={})
    assert [run.arms for run in plan_runs(expand(config, {}), real)] == [
        ("plain", "written"),
        ("masked",),
    ]


def test_a_refused_setting_names_its_arm():
    def refuse(kind, tree):
        if tree.get("rows") == 100:
            raise ConfigError("rows (100): must be less")
        return resolve(kind, tree)

    with pytest.raises(ConfigError, match=r"arms\.many: rows \(100\): must be less"):
        plan_runs(expand(study(), {}), refuse)


def test_the_key_leaves_out_what_only_steers_a_run():
    config = {"output": "a", "lr": 1.0, "rollout": {"cpus": 1.0, "temperature": 1.0}}
    steered = {"output": "b", "lr": 1.0, "rollout": {"cpus": 0.3, "temperature": 1.0}}
    decided = {"output": "a", "lr": 1.0, "rollout": {"cpus": 1.0, "temperature": 0.5}}
    assert run_key("fit", config) == run_key("fit", steered) != run_key("fit", decided)


def test_the_content_of_an_input_names_a_run_and_not_its_place():
    def real(kind, tree):
        return parse_settings(TrainConfig, tree).model_dump(mode="json")

    def own(name):
        data = {key: f"{name}/{key}" for key in ("policy", "reward", "cost", "prompts")}
        return {"kind": "train", "set": {"data": data}}

    arms = {"here": own("a"), "moved": own("b"), "changed": own("c")}
    specs = expand(study(arms=arms, questions=[], seeds=[0], common={}), {})
    # What c/prompts holds differs; all else is the same in three places.
    runs = plan_runs(specs, real, lambda path: "other" if path == Path("c/prompts") else path.name)
    assert [run.arms for run in runs] == [("here", "moved"), ("changed",)]
    assert runs[0].inputs == {f"data.{key}": key for key in ("policy", "reward", "cost", "prompts")}
    assert run_key("train", runs[0].config, runs[0].inputs) == runs[0].key
    # Without anyone to look into them, places stand for what they hold.
    assert [run.arms for run in plan_runs(specs, real)] == [("here",), ("moved",), ("changed",)]


def with_start() -> StudyConfig:
    return study(seeds=[3, 0], arms=TREE["arms"] | {"offline": {"kind": "fit", "start": "few"}})


def test_a_run_goes_on_from_that_of_its_seed():
    runs = {(run.arms[0], run.seed): run for run in plan(with_start())}
    for seed in (3, 0):
        assert runs["offline", seed].start == runs["few", seed].key
        assert runs["few", seed].start == ""
    # Another start is another run, and so is none.
    alone = {(run.arms[0], run.seed): run for run in plan(study(seeds=[3, 0]))}
    assert alone["few", 0].key == runs["few", 0].key
    assert alone["offline", 0].key != runs["offline", 0].key


def test_a_start_leaves_no_place_for_a_policy_of_its_own():
    arms = TREE["arms"] | {
        "offline": {"kind": "fit", "start": "few", "set": {"data": {"policy": "mine"}}}
    }
    with pytest.raises(ConfigError, match=r"arms.offline: data.policy must be left out.*few"):
        plan(study(arms=arms))
