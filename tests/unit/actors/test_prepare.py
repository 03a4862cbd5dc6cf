"""Which settings each stage is found by: every field is changed, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from equilibrate.config.base import RunConfig
from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.evaluation import RefusalMatcher
from equilibrate.run.contents import Contents
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
    *("seed", "max_length", "sandbox.seed", "rollout.max_new_tokens", "rollout.max_model_len"),
    *("fdc.amounts", "fdc.when_short", "fdc.mislabelled_fraction"),
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
        evaluation=folder / "base",
        judge=RefusalMatcher(),
        train=None,
        prompts=None,
    )


def other(value: Any) -> Any:
    """Another value of the same kind, whether or not the rules allow it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
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

    assert steering(key_of, TrainConfig()) == TRAINING
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
