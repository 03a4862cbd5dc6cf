"""Which settings each stage is found by: every field is changed, one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from pydantic import BaseModel

from equilibrate.config.base import JudgeConfig, RunConfig
from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.inputs import plain
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError
from equilibrate.evaluation import RefusalMatcher
from equilibrate.offline.table import load_answers
from equilibrate.run.contents import Contents
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer
from equilibrate.types import ScorerKind

pytest.importorskip("ray", reason="the stages start their trainings with it")

from actors import fit, prepare
from actors.prepare import FitInputs

TRAINING = {"device", "dtype", "cpu_threads", "sandbox.seed", "sandbox.base_steps"}
TEXT = {"text.template_arguments", "text.date"}
SAMPLING = {
    *TEXT,
    *("seed", "device", "dtype", "cpu_threads"),
    *(
        f"rollout.{key}"
        for key in ("num_workers", "temperature", "max_new_tokens", "max_model_len")
    ),
}
SCORING = {
    *("device", "dtype", "cpu_threads", "scoring.num_workers", "scoring.max_tokens_per_batch"),
}
LABELLING = {
    *TEXT,
    *("data.columns", "data.prefer"),
    *("seed", "max_length", "sandbox.seed", "rollout.max_new_tokens", "rollout.max_model_len"),
    *("fdc.amounts", "fdc.when_short", "fdc.mislabelled_fraction", "fdc.remedy"),
}
DPO = {f"objective.{key}" for key in ("beta", "nll_coef", "nll_on")}
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # odd values
FIT = {"fdc": {"amounts": {"EHD": 1}}, "ama": {}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model", "base", "preferences_reward", "preferences_cost"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path


def fit_inputs(folder: Path) -> FitInputs:
    return FitInputs(
        policy=folder / "model",
        reward=folder / "preferences_reward",
        cost=folder / "preferences_cost",
        ptx=None,
        evaluation=plain(folder / "base"),
        judge=RefusalMatcher(),
        train=(),
        prompts=(),
    )


def test_what_a_run_is_pinned_to_holds_every_reward(folder: Path) -> None:
    inputs = replace(
        fit_inputs(folder), more_rewards=[(str(folder / "base"), 0.5), (str(folder / "model"), 1.0)]
    )
    held = prepare.contents_of(inputs, Contents(folder / "stages"))
    (folder / "base" / "file").write_text("another")
    again = prepare.contents_of(inputs, Contents(folder / "stages"))
    changed = {key for key in held if held[key] != again[key]}
    assert changed == {"data.evaluation", "data.more_rewards[0]"}
    assert held["data.more_rewards[1]"] == held["data.policy"]


OTHER_CHOICE = {"cpu": "cuda", "float32": "bfloat16"}


def other(value: Any) -> Any:
    """Another value of the same kind, whether or not the rules allow it."""
    if isinstance(value, str) and value in OTHER_CHOICE:
        return OTHER_CHOICE[value]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 3  # scorers share threads: one more changes nothing
    if isinstance(value, dict):
        return {} if value else {"another": 1}
    return f"{value}, but another"


def variants(config: BaseModel, prefix: str = "") -> dict[str, BaseModel]:
    """For each dotted key the settings that differ in it alone."""
    found: dict[str, BaseModel] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            for key, inner in variants(value, f"{prefix}{name}.").items():
                found[key] = config.model_copy(update={name: inner})
        else:
            found[f"{prefix}{name}"] = config.model_copy(update={name: other(value)})
    return found


def steering(key_of: Callable[[Any], str | None], config: BaseModel) -> set[str]:
    """Keys whose change gives another stage."""
    before = key_of(config)
    return {name for name, variant in variants(config).items() if key_of(variant) != before}


def test_the_world_is_found_by_its_seed_and_sizes() -> None:
    expected = {"sandbox.seed", "sandbox.pairs", "sandbox.evaluation_per_cell"}
    assert steering(lambda config: prepare._world_stage(config).key, TrainConfig()) == expected


@pytest.mark.parametrize("kind", ["base", "reward", "cost"])
def test_a_model_of_the_world_is_found_by_what_it_is_trained_with(kind: str, folder: Path) -> None:
    def key_of(config: RunConfig) -> str:
        if kind == "base":
            return prepare._base_stage(config, folder, folder, 0.0).key
        scorer: ScorerKind = "reward" if kind == "reward" else "cost"
        return prepare._scorer_stage(config, scorer, folder, folder / "model", folder, 0.0).key

    # A scorer reads of the base what it holds, not for how long it was trained.
    expected = TRAINING if kind == "base" else TRAINING - {"sandbox.base_steps"}
    assert steering(key_of, TrainConfig()) == expected
    before = key_of(TrainConfig())
    (folder / "model" / "file").write_text("another")
    assert key_of(TrainConfig()) != before


def test_answers_of_the_base_are_found_by_what_they_are_sampled_with(folder: Path) -> None:
    def key_of(config: RunConfig) -> str:
        place = prepare.shared_base(config, fit_inputs(folder), folder)
        assert place is not None
        return place.name

    assert steering(key_of, TrainConfig()) == SAMPLING
    assert steering(key_of, parse_settings(FitConfig, FIT)) == SAMPLING


@pytest.mark.parametrize(
    ("objective", "ama", "expected"),
    [
        ({"type": "sft"}, "off", LABELLING),
        ({"type": "sft"}, {}, LABELLING | SCORING),
        ({"type": "dpo"}, "off", LABELLING | SCORING | DPO),
        (
            {"type": "ars"},
            "off",
            LABELLING
            | SAMPLING
            | SCORING
            | {"multiplier", "objective.copies", "objective.negative_coef"},
        ),
    ],
)
def test_answers_to_learn_from_are_found_by_what_makes_them(
    objective: dict[str, Any], ama: Any, expected: set[str], folder: Path
) -> None:
    inputs, contents = fit_inputs(folder), Contents(folder)

    def key_of(config: FitConfig) -> str | None:
        try:
            return fit._answers_stage(config, inputs, None, contents).key  # type: ignore[arg-type]
        except KeyError:
            return None  # of no known objective

    config = parse_settings(FitConfig, FIT | {"objective": objective, "ama": ama})
    of_masks = {"ama"} if ama == "off" else set()
    found = steering(key_of, config)
    # Whether there is a mask decides whether answers are scored.
    assert found - of_masks == {"objective.type"} | expected
    before = key_of(config)
    (folder / "base" / "file").write_text("another")
    assert key_of(config) != before


class BenchReached(Exception):
    """All that precedes sampling and scoring was done."""


class NoBench:
    def load(self, folder: Path, version: int) -> None:
        raise BenchReached

    def scorer_of(self, inputs: FitInputs) -> None:
        raise BenchReached


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("objective", ["sft", "dpo", "ars"])
def test_making_answers_reads_no_setting_that_is_not_in_their_key(
    objective: str, own: bool, tmp_path: Path
) -> None:
    """Up to where processes are needed: other settings are not there to be read."""
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    asked = {"prompt": "how do i clean the lamp ?", "category": "EHD"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(asked))
    (tmp_path / "evaluation.jsonl").write_text(json.dumps(asked | {"prompt": "what is a rope ?"}))
    answer = "first open the lamp ."
    pairs = {"response": [answer], "chosen": [answer], "rejected": ["i can not help ."]}
    own_data = {name: [value] for name, value in asked.items()} | pairs
    Dataset.from_dict(own_data).save_to_disk(str(tmp_path / "pairs"))
    inputs = replace(
        fit_inputs(tmp_path),
        policy=tmp_path / "policy",
        evaluation=plain(tmp_path / "evaluation.jsonl"),
        reward=tmp_path / "policy",
        cost=tmp_path / "policy",
        train=plain(tmp_path / "pairs") if own else (),
        prompts=plain(tmp_path / "prompts.jsonl"),
    )
    config = parse_settings(
        FitConfig, FIT | {"output": str(tmp_path), "objective": {"type": objective}, "ama": "off"}
    )
    stage = fit._answers_stage(config, inputs, NoBench(), Contents(tmp_path))  # type: ignore[arg-type]
    if objective == "sft":
        stage.make(tmp_path)
        assert len(load_answers(tmp_path)) == 1
    else:
        with pytest.raises(BenchReached):
            stage.make(tmp_path)


def test_the_judge_is_the_one_that_the_settings_name() -> None:
    config = TrainConfig()
    assert prepare.judge_of(config, is_built_in=True).name == "oracle"
    assert prepare.judge_of(config, is_built_in=False).name == "refusal rules"
    named = config.model_copy(update={"judge": JudgeConfig(name="oracle", options={"seed": 1})})
    assert prepare.judge_of(named, is_built_in=False).name == "oracle"
    with pytest.raises(ConfigError, match="'seed'"):
        prepare.judge_of(
            config.model_copy(update={"judge": JudgeConfig(name="oracle", options={"sed": 1})}),
            is_built_in=True,
        )
