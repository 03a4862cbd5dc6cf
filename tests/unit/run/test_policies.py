from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from equilibrate.config.align import AlignConfig
from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.errors import DataError
from equilibrate.models.folders import check_folder
from equilibrate.report.card import base_model
from equilibrate.run.policies import with_base_policy, with_whole_policy
from tests.unit.models.test_importing import write_source

peft = pytest.importorskip("peft", reason="peft is in the unit tests' environment")
TOKENS = torch.arange(3, 27).view(2, 12)


@pytest.fixture(autouse=True)
def rest_is_right(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Its door has tests of its own. Returns: the policies that it was asked about."""
    asked: list[Path] = []
    for name, policy_of_asked in (
        ("check_inputs", lambda config: config.data.policy),
        ("check_journey", lambda journey: journey.config.policy),
    ):
        monkeypatch.setattr(
            f"equilibrate.run.policies.{name}",
            lambda asked_of, of=policy_of_asked: asked.append(Path(of(asked_of))),
        )
    return asked


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_source(tmp_path / "base")


def write_adapter(base: str | Path, folder: Path, *, seed: int = 1) -> torch.Tensor:
    """As others make one; returns the logits of the base with it."""
    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        logits: torch.Tensor = adapted.eval()(TOKENS).logits
    return logits


def configs(tmp_path: Path) -> list[Any]:
    output, policy = {"output": str(tmp_path / "run")}, {"policy": str(tmp_path / "adapter")}
    asked = policy | {"reward": "reward", "cost": "cost", "prompts": "prompts.jsonl"}
    learned = policy | {"train": "pairs.jsonl"}
    return [
        TrainConfig.model_validate(output | {"data": asked}),
        FitConfig.model_validate(output | {"data": learned, "fdc": {"amounts": {"EHD": 1}}}),
        AlignConfig.model_validate(output | asked),
    ]


def policy_of(config: Any) -> Path:
    return Path(config.policy if isinstance(config, AlignConfig) else config.data.policy)


def test_an_adapter_is_merged_once_and_found_again(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rest_is_right: list[Path]
) -> None:
    wanted = write_adapter(base, tmp_path / "adapter")
    found = {policy_of(with_whole_policy(config)) for config in configs(tmp_path)}
    assert len(found) == 1
    assert rest_is_right == [base] * 3, "before anything is merged"
    assert capsys.readouterr().out.count("is merged into") == 1
    folder = found.pop()
    assert base_model(folder) == "base+adapter"
    assert folder.parent == tmp_path / "run/stages"
    check_folder(folder, "policy")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder).eval()(TOKENS).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


def test_another_adapter_or_base_is_another_policy(base: Path, tmp_path: Path) -> None:
    config, *_ = configs(tmp_path)
    found = set()
    for seed in (1, 2):
        write_adapter(base, tmp_path / "adapter", seed=seed)
        found.add(policy_of(with_whole_policy(config)))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight.data += 1
    model.save_pretrained(base)
    found.add(policy_of(with_whole_policy(config)))
    assert len(found) == 3


def test_a_model_folder_is_left_as_it_is(base: Path, tmp_path: Path) -> None:
    base.rename(tmp_path / "adapter")
    for config in configs(tmp_path):
        assert with_whole_policy(config) is config
        assert with_base_policy(config) is config
    assert not (tmp_path / "run").exists()


def test_those_who_make_nothing_see_the_base(base: Path, tmp_path: Path) -> None:
    write_adapter(base, tmp_path / "adapter")
    for config in configs(tmp_path):
        assert policy_of(with_base_policy(config)) == base
    assert not (tmp_path / "run").exists()


def test_a_base_may_be_named_from_the_adapters_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(base, tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(file.read_text().replace(str(base), "../base"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert policy_of(with_base_policy(configs(tmp_path)[0])).samefile(base)


def test_a_base_that_is_not_here_is_asked_for(base: Path, tmp_path: Path) -> None:
    write_adapter(base, tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(file.read_text().replace(str(base), "somebody/chat-8b"))
    for take in (with_whole_policy, with_base_policy):
        with pytest.raises(DataError, match=r"import somebody/chat-8b OUT --adapter .*/adapter$"):
            take(configs(tmp_path)[0])
