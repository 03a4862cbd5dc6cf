"""Which settings name a result, checked on every field there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from equilibrate.config.base import SAMPLED_BY, SCORED_BY, Config, RunConfig
from equilibrate.config.files import RUN_KINDS, parse_settings
from equilibrate.config.identity import (
    GIVEN,
    Mark,
    fixed_on_resume,
    input_paths,
    mark_of,
    models_in,
    only,
    require_fixed,
    result_settings,
    result_tree,
)
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError
from equilibrate.study.grid import run_key

WORKERS = ("cpus", "gpus", "resources")
TRAINING = (*WORKERS, "activation_checkpointing")
SAMPLING = (*(f"rollout.{name}" for name in WORKERS), "rollout.memory_gib")
CARRIES_OUT = {
    "settings_format",
    "output",
    "timeout_seconds",
    "phase_seconds",
    "max_restarts",
    "data.max_rejected_fraction",
    "data.licences",
    "judge.agreement",
    *SAMPLING,
    *(f"scoring.{name}" for name in WORKERS),
}
EXPECTED: Mapping[str, Mapping[Mark, set[str]]] = {
    "train": {
        Mark.CARRIES_OUT: {
            *CARRIES_OUT,
            "checkpoint_every",
            "keep_checkpoints",
            "wandb_project",
            "parity_tolerance",
            *(f"learner.{name}" for name in TRAINING),
        },
        Mark.MAY_CHANGE: {"iterations", "evaluate_every", "ppo.kl.stop_at"},
        Mark.INPUT: {
            "sandbox.policy",
            *(f"data.{name}" for name in ("policy", "reward", "cost")),
            *(f"data.{name}" for name in ("more_rewards", "prompts", "evaluation", "ptx")),
        },
    },
    "fit": {
        Mark.CARRIES_OUT: {*CARRIES_OUT, *(f"trainer.{name}" for name in TRAINING)},
        Mark.MAY_CHANGE: set(),
        Mark.INPUT: {
            "sandbox.policy",
            *(f"data.{name}" for name in ("policy", "reward", "cost", "train", "evaluation")),
        },
    },
}
"""Every field with a mark. One that is missing here changes the result."""
KINDS = list(EXPECTED)
FIT = {"fdc": {"amounts": {"EHD": 1}}}


def keys_of(models: list[type[BaseModel]], prefix: str = "") -> set[str]:
    """Every dotted key that settings of these classes may hold."""
    found = set()
    for name, field in ((n, f) for model in models for n, f in model.model_fields.items()):
        inner = models_in(field)
        found |= keys_of(inner, f"{prefix}{name}.") if inner else {f"{prefix}{name}"}
    return found


def tree_with(key: str, value: object) -> dict[str, Any]:
    """A tree that holds this key alone; whether its value is valid does not matter."""
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def holds(tree: Any, key: str) -> bool:
    name, _, rest = key.partition(".")
    return name in tree and (not rest or holds(tree[name], rest))


def classes(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in models_in(field):
            yield from classes(inner)


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_changes_the_key_of_a_run_unless_its_field_says_otherwise(kind: Any) -> None:
    without = EXPECTED[kind][Mark.CARRIES_OUT]
    paths = EXPECTED[kind][Mark.INPUT]
    found = {}
    for key in keys_of([RUN_KINDS[kind]]):
        one, other = (run_key(kind, tree_with(key, value)) for value in ("one", "other"))
        found[key] = one != other
    # Of a path the content counts, which stands beside the settings.
    assert found == {key: key not in without | paths for key in found}
    assert without | paths <= found.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_keeps_every_setting_unless_its_field_says_otherwise(kind: Any) -> None:
    # Every part that can be off is on, so that it has values.
    trees = {"fit": {**FIT, "trainer": {"adapter": {}}}, "train": {"learner": {"adapter": {}}}}
    config = parse_settings(RUN_KINDS[kind], trees[kind] | {"ama": {}})
    free = EXPECTED[kind][Mark.CARRIES_OUT] | EXPECTED[kind][Mark.MAY_CHANGE]
    present = {key for key in keys_of([RUN_KINDS[kind]]) if holds(config.model_dump(), key)}
    assert fixed_on_resume(config).keys() == present - free


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_a_union_and_fields_declared_again_keep_their_marks(kind: str) -> None:
    for model in classes(RUN_KINDS[kind]):
        for base in (b for b in model.__mro__[1:] if isinstance(b, type) and issubclass(b, Config)):
            for name, field in base.model_fields.items():
                assert mark_of(model.model_fields[name]) is mark_of(field), f"{model} {name}"
        for name, field in model.model_fields.items():
            members = models_in(field)
            for shared in {n for member in members for n in member.model_fields}:
                marks = {
                    mark_of(m.model_fields[shared]) for m in members if shared in m.model_fields
                }
                assert len(marks) == 1, f"{model} {name}.{shared}"


def test_the_content_of_an_input_counts_and_not_its_place() -> None:
    data = {name: name for name in ("policy", "reward", "cost", "prompts")}
    here = parse_settings(TrainConfig, {"data": data})
    there = parse_settings(TrainConfig, {"data": {k: f"moved/{v}" for k, v in data.items()}})
    assert result_settings(here) == result_settings(there) != result_settings(TrainConfig())
    assert result_settings(here)["data"]["prompts"] == GIVEN
    assert result_settings(here)["data"]["ptx"] == ""
    assert fixed_on_resume(here)["data.cost"] == GIVEN
    assert input_paths(there)["data.reward"] == Path("moved/reward")
    assert set(input_paths(there)) == {f"data.{name}" for name in data}
    assert not input_paths(TrainConfig())
    # An address is no path: what a path would make of it is another one.
    address = parse_settings(TrainConfig, {"data": data | {"reward": "http://h//a/"}})
    assert input_paths(address)["data.reward"] == "http://h//a/"


def test_a_mixture_is_one_setting() -> None:
    config = parse_settings(TrainConfig, {"fdc": {"mixture": {"EHD": 1, "GENERAL": 3}}})
    assert fixed_on_resume(config)["fdc.mixture"] == {"EHD": 1.0, "GENERAL": 3.0}


def test_keys_of_no_field_count() -> None:
    assert result_tree(TrainConfig, {"rows": 1, "output": "runs/a"}) == {"rows": 1}


def test_only_what_was_asked_for_can_be_read() -> None:
    config = parse_settings(TrainConfig, {"seed": 3, "device": "cuda"})
    part = only(config, "seed", "rollout.temperature", "ppo")
    assert (part.seed, part.rollout.temperature, part.ppo) == (3, 1.0, config.ppo)
    for read in (
        lambda: part.device,
        lambda: part.rollout.copies,
        lambda: part.rollouts_per_iteration,
    ):
        with pytest.raises(AttributeError):
            read()
    assert result_settings(part) == {
        "seed": 3,
        "rollout": {"temperature": 1.0},
        "ppo": result_settings(config)["ppo"],
    }
    assert config.device == "cuda"
    assert only(config, "rollout.copies", "rollout").rollout == config.rollout


@pytest.mark.parametrize("path", ["sed", "rollout.tempreature", "data.sources.one"])
def test_only_what_exists_can_be_asked_for(path: str) -> None:
    with pytest.raises(ValueError, match="is no setting of"):
        only(TrainConfig(), path)


def test_a_setting_that_must_stay_is_named_with_both_values() -> None:
    saved, now = {"seed": 0, "ppo.epochs": 2}, {"seed": 0, "ppo.epochs": 3}
    require_fixed(saved, dict(saved), "runs/a")
    message = (
        r"ppo\.epochs \(3\) must stay what it was when the run in runs/a was started \(2\); "
        "set it back, or choose another output folder"
    )
    with pytest.raises(ConfigError, match=message):
        require_fixed(saved, now, "runs/a")


def test_a_setting_that_is_newer_than_a_checkpoint_counts_at_its_default() -> None:
    saved, defaults = {"constraint": None}, {"epsilon": 1, "constraint.type": "pid"}
    require_fixed(saved, {**saved, "epsilon": 1}, "runs/a", defaults)
    with pytest.raises(ConfigError, match=r"epsilon \(2\) must stay .* \(1\)"):
        require_fixed(saved, {**saved, "epsilon": 2}, "runs/a", defaults)
    # What was off and is now as by default is no newer setting.
    with pytest.raises(ConfigError, match=r"constraint \(None\) must stay"):
        require_fixed(saved, {"constraint.type": "pid"}, "runs/a", defaults)


NOT_SAMPLED_BY = {
    "judge",
    *("settings_format", "output", "phase_seconds", "timeout_seconds", "max_restarts"),
    *("sandbox", "scoring"),  # the models and prompts that come of it count by their content
}


def test_every_setting_of_all_runs_is_one_that_answers_depend_on_or_known_not_to_be() -> None:
    """A new one belongs into `SAMPLED_BY`, or here."""
    assert set(RunConfig.model_fields) - {path.partition(".")[0] for path in SAMPLED_BY} == (
        NOT_SAMPLED_BY
    )
    only(TrainConfig(), *SAMPLED_BY, *SCORED_BY)  # they exist
