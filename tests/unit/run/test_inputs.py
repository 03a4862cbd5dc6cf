from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from equilibrate.config.files import load_config, parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError
from equilibrate.run.door import check_inputs
from equilibrate.run.inputs import _check_trained
from tests.tiny_models import write_models
from tests.unit.models.toys import write_policy


def test_a_scorer_goes_on_from_one_of_its_kind_alone(tmp_path: Path) -> None:
    models = write_models(tmp_path)
    rows = [{"prompt": f"p {row}", "response": "a", "is_safe": bool(row % 2)} for row in range(40)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(start: str) -> FitConfig:
        data = {"policy": str(models / start), "train": str(tmp_path / "labels.jsonl")}
        return parse_settings(FitConfig, {"data": data, "objective": {"type": "cost"}})

    check_inputs(config("cost"), tmp_path)
    check_inputs(config("policy"), tmp_path)
    with pytest.raises(DataError, match=r"kind \('reward'\) must be 'cost'"):
        check_inputs(config("reward"), tmp_path)


@pytest.mark.parametrize("kind", ["fit", "train"])
def test_layers_that_no_model_has_are_refused_at_the_door(tmp_path: Path, kind: str) -> None:
    models = write_models(tmp_path)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"w{n}", "response": "w9"}) + "\n" for n in range(9))
    )
    adapter = {"adapter": {"target_modules": ["q_proj", "qkv"]}}
    rows = str(tmp_path / "rows.jsonl")
    config: FitConfig | TrainConfig
    if kind == "fit":
        data = {"policy": str(models / "policy"), "train": rows}
        tree = {"data": data, "objective": {"type": "sft"}, "trainer": adapter}
        config = parse_settings(FitConfig, tree)
    else:
        for scorer in ("reward", "cost"):
            for file in (models / "policy").glob("tokenizer*"):
                shutil.copy(file, models / scorer)
        folders = {name: str(models / name) for name in ("policy", "reward", "cost")}
        tree = {"data": folders | {"prompts": rows}, "learner": adapter}
        config = parse_settings(TrainConfig, tree)
    with pytest.raises(ConfigError, match=r"'qkv'.* has no such layer; it has down_proj, .*q_proj"):
        check_inputs(config, tmp_path)


def test_the_built_in_world_has_layers_too() -> None:
    file = [Path("deploy/configs/sandbox.yaml")]
    check_inputs(load_config(file, ["learner.adapter.rank=4"]))
    with pytest.raises(ConfigError, match=r"'c_attn'.* has no such layer; it has down_proj"):
        check_inputs(load_config(file, ["learner.adapter.target_modules=[c_attn]"]))


def test_a_model_that_no_critic_starts_from_may_lack_them(tmp_path: Path) -> None:
    """A reward that has tokens of its own, without layers that adapters change."""
    models = write_models(tmp_path)
    write_policy(models / "gpt2", "gpt2")
    sources = [str(models / "gpt2"), "http://localhost:1/score"]
    for source in sources:
        data = {"policy": str(models / "policy"), "prompts": "p", "reward": "http://localhost:2/"}
        config = TrainConfig.model_validate(
            {
                "data": data | {"more_rewards": {source: 1.0}},
                "learner": {"adapter": {}},
                "constraint": "off",
            }
        )
        _check_trained(config, models / "policy")
    config = TrainConfig.model_validate(
        {"data": data | {"reward": sources[0]},
         "learner": {"adapter": {}}, "constraint": "off"}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no linear layers"):
        _check_trained(config, models / "policy")
