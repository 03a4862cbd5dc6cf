"""The disk that a run needs: by hand, and against what tensors and runs take."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from equilibrate import cli
from equilibrate.config.align import AlignConfig, Journey
from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ResourceError
from equilibrate.run import space
from equilibrate.run.space import (
    FLOAT,
    REPORT_BYTES,
    STATE_BYTES,
    WORLD_WEIGHTS,
    Space,
    check_space,
    require_space,
    space_of,
    space_of_journey,
)
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer
from tests.tiny_models import TINY_LLAMA, write_models

LAYER = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32
TRUNK = 40 * 32 + 2 * LAYER + 32
"""Weights of the tiny Llama; its head is its embeddings, and a scorer has 32 more."""
WORLD = {"fdc": {"amounts": {"EHD": 1}}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def texts(folder: Path) -> int:
    return sum(
        file.stat().st_size for file in folder.iterdir() if file.suffix in (".json", ".jinja")
    )


def train_config(models: Path, **changes: Any) -> TrainConfig:
    data = {name: str(models / name) for name in ("policy", "reward", "cost")}
    tree = {"data": data | {"prompts": "p"}, "keep_checkpoints": 3, "output": str(models / "run")}
    return TrainConfig.model_validate(tree | changes)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_of_ppo_by_hand(models: Path, stage: int) -> None:
    assert TINY_LLAMA["hidden_size"] == 32
    found = space_of(train_config(models, learner={"zero_stage": stage}))
    checkpoint = STATE_BYTES[stage] * (TRUNK + 2 * (TRUNK + 32))
    assert found.parts == {
        "checkpoints": 3 * checkpoint,
        "exported model": FLOAT * TRUNK + texts(models / "policy"),
        "report": REPORT_BYTES,
    }
    assert found.writing == checkpoint


def test_without_critics_and_with_an_average(models: Path) -> None:
    changes = {"ppo": {"advantage": "reinforce_plus_plus"}, "learner": {"average_decay": 0.9}}
    found = space_of(train_config(models, **changes))
    assert found.writing == 12 * TRUNK + 4 * TRUNK
    assert found.parts["exported model"] == 2 * (FLOAT * TRUNK + texts(models / "policy"))
    alone = train_config(models, constraint="off", ama="off")
    without = alone.model_copy(update={"data": alone.data.model_copy(update={"cost": ""})})
    assert space_of(without).writing == 12 * (2 * TRUNK + 32)


def test_offline_training_writes_two_states_at_most(models: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"x" * 1000)
    data = {"policy": str(models / "policy"), "train": str(rows)}
    tree = {"objective": {"type": "cost"}, "data": data, "trainer": {"zero_stage": 1}}
    found = space_of(parse_settings(FitConfig, tree))
    # A scorer has no head of the policy, but one of its own.
    model = FLOAT * (TRUNK + 32) + texts(models / "policy")
    assert found.parts == {"model": model, "answers": 4000, "report": REPORT_BYTES}
    assert found.peak == 2 * 16 * (TRUNK + 32) + 4000 + REPORT_BYTES


def test_checkpoints_of_adapters_hold_no_frozen_weight(models: Path, tmp_path: Path) -> None:
    adapter = {"adapter": {"rank": 2}}
    # In each of two layers: q, k, v and o of 32 x 32, gate, up and down of 32 x 48.
    parts = 2 * 2 * (4 * (32 + 32) + 3 * (32 + 48))
    found = space_of(train_config(models, learner=adapter))
    assert found.writing == 12 * (parts + 2 * (parts + 32))
    assert found.parts["exported model"] == FLOAT * (TRUNK + parts) + texts(models / "policy")
    (tmp_path / "rows.jsonl").write_text("")
    data = {"policy": str(models / "policy"), "train": str(tmp_path / "rows.jsonl")}
    tree = {"objective": {"type": "cost"}, "data": data, "trainer": adapter}
    fit = space_of(parse_settings(FitConfig, tree))
    model = FLOAT * (TRUNK + 32 + parts + 32) + texts(models / "policy")
    assert fit.parts["model"] == model
    assert fit.writing == max(12 * (parts + 32), model) + 12 * (parts + 32) - model


def test_a_journey_needs_what_its_largest_moment_needs(models: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("")
    tree = {
        "policy": str(models / "policy"), "pairs": str(tmp_path / "pairs"), "prompts": "p",
        "output": str(tmp_path / "out"), "steps": {"align": {"keep_checkpoints": 1}},
    }  # fmt: skip
    journey = Journey(parse_settings(AlignConfig, tree))
    found = space_of_journey(journey)
    scorer = FLOAT * (TRUNK + 32) + texts(models / "policy") + REPORT_BYTES
    checkpoint = 12 * (TRUNK + 2 * (TRUNK + 32))
    align = checkpoint + FLOAT * TRUNK + texts(models / "policy") + REPORT_BYTES
    assert found.parts == {"reward": scorer, "cost": scorer, "align": align}
    assert found.writing == checkpoint


def test_the_models_of_the_built_in_world_are_as_large_as_said() -> None:
    policy = build_model(build_tokenizer(), seed=0)
    assert sum(p.numel() for p in policy.parameters()) == WORLD_WEIGHTS
    assert space_of(TrainConfig()).writing == 3 * 12 * WORLD_WEIGHTS
    assert "world" in space_of(FitConfig.model_validate(WORLD)).parts


def test_the_state_of_adam_is_what_torch_writes(tmp_path: Path) -> None:
    """As DeepSpeed saves it at ZeRO-0: the integration tests hold the stages to what it writes."""
    net = torch.nn.Linear(400, 400)
    adam = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 400)).sum().backward()
    adam.step()
    torch.save({"module": net.state_dict(), "optimizer": adam.state_dict()}, tmp_path / "x.pt")
    weights = sum(p.numel() for p in net.parameters())
    assert (tmp_path / "x.pt").stat().st_size == pytest.approx(STATE_BYTES[0] * weights, rel=0.02)


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that are free, to be set."""
    found = [0]
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: Usage(0, 0, found[0]))
    return found


def test_less_than_is_needed_is_refused_and_what_is_there_counts(
    tmp_path: Path, free: list[int]
) -> None:
    need = Space(parts={"checkpoints": 3_000_000, "report": 0}, writing=1_500_000)
    run = tmp_path / "run"
    free[0] = 4_499_999
    message = r"up to 4 MB \(checkpoints 3 MB, while writing 2 MB\), and 4 MB are free"
    with pytest.raises(ResourceError, match=message):
        check_space(need, run, [run])
    (run / "checkpoints" / "iteration-1").mkdir(parents=True)
    (run / "checkpoints" / "iteration-1" / "x").write_bytes(b"x" * 1_000_000)
    (run / "unrelated").write_bytes(b"x" * 1_000_000)
    free[0] = 3_500_000
    assert check_space(need, run, [run]).endswith("; free 4 MB")
    free[0] = 3_499_999
    with pytest.raises(ResourceError, match="of which 1 MB are there already"):
        check_space(need, run, [run])


def test_links_and_missing_folders_are_no_bytes_of_a_run(tmp_path: Path, free: list[int]) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "x").write_bytes(b"x" * 1000)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stages").symlink_to(tmp_path / "shared")
    free[0] = 999
    with pytest.raises(ResourceError):
        check_space(Space(parts={"a": 1000}, writing=0), tmp_path / "run", [tmp_path / "run"])


def test_validate_says_it_and_warns(
    free: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["validate", "--config", "deploy/configs/sandbox.yaml", f"output={tmp_path}/run"]
    free[0] = 10**12
    assert cli.main(arguments) == 0
    assert "\n# disk: " in capsys.readouterr().out
    free[0] = 10**6
    assert cli.main(arguments) == 0
    assert "warning: here" in capsys.readouterr().err


def test_a_run_of_the_command_line_is_refused_before_anything_starts(
    free: list[int], tmp_path: Path
) -> None:
    config = TrainConfig.model_validate({"output": str(tmp_path / "run")})
    free[0] = 10**6
    with pytest.raises(ResourceError) as error:
        require_space(config)
    assert error.value.exit_code == 4


def test_a_critic_that_cannot_start_from_its_scorer_is_as_large_as_the_policy(
    models: Path, tmp_path: Path
) -> None:
    cost = tmp_path / "cost"
    config = LlamaConfig(**TINY_LLAMA | {"num_hidden_layers": 3}, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(cost)
    data = {"policy": str(models / "policy"), "reward": str(models / "reward"), "cost": str(cost)}
    settings = train_config(models, data=data | {"prompts": "p"})
    assert space_of(settings).writing == 12 * (TRUNK + (TRUNK + 32) + (TRUNK + LAYER + 32))
    build_tokenizer().save_pretrained(cost)
    assert space_of(settings).writing == 12 * (TRUNK + 2 * (TRUNK + 32))
