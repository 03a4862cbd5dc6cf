"""Memory by group: states by hand, what does not fit, and what would help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config

from equilibrate import cli
from equilibrate.config.files import load_settings, parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError, ResourceError
from equilibrate.planner import commands
from equilibrate.planner.commands import show_plan, warn_of_memory
from equilibrate.planner.hardware import GPUS
from equilibrate.planner.memory import OVERHEAD, Memory, trained
from equilibrate.planner.plan import Device, Part, plan, too_large
from equilibrate.planner.speed import iteration_seconds
from equilibrate.planner.tracing import Traced
from tests.unit.models.toys import write_policy

PRESETS = Path("deploy/configs/presets")
SHAPES = {
    "0.5b": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "8b": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
    ),
}  # fmt: skip
"""Qwen2.5-0.5B and Llama-3-8B, as their config.json say."""


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        # Of 1000 numbers on 4 ranks, all trained: bytes of weights, gradients, optimizer, buffers.
        (0, (4000, 4000, 8000, 0)),
        (1, (4000, 4000, 3000, 0)),
        (2, (4000, 1000, 3000, 4000)),
        (3, (1000, 1000, 3000, 8000)),
    ],
)
def test_states_of_a_rank_by_hand(stage: int, expected: tuple[int, ...]) -> None:
    model = Traced(parameters=1000, trained=1000, weights=4000, gradients=4000, activations=77)
    found = trained([model], zero_stage=stage, num_ranks=4)
    sent = found.buffers - OVERHEAD
    assert (found.weights, found.gradients, found.optimizer, sent) == expected
    assert found.total == sum(expected) + 77 + OVERHEAD


def test_models_of_a_rank_add_up_and_take_turns() -> None:
    models = [
        Traced(parameters=9, trained=n, weights=36, gradients=4 * n, activations=100 * n)
        for n in (1, 3)
    ]
    found = trained(models, zero_stage=0, num_ranks=1)
    assert found == Memory(
        weights=72, gradients=16, optimizer=32, activations=300, buffers=OVERHEAD
    )


def train_config(folder: Path, **changes: Any) -> TrainConfig:
    data = dict.fromkeys(("policy", "reward", "cost", "prompts"), str(folder))
    return parse_settings(TrainConfig, {"data": data} | changes)


def test_each_group_has_its_models(tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "model")
    lengths = {"max_model_len": 32, "max_new_tokens": 16}
    parts = {one.name: one for one in plan(train_config(folder, rollout=lengths))}
    learner, scoring, rollout = (parts[name].memory for name in ("learner", "scoring", "rollout"))
    policy = 4 * (2 * 32 * 16 + 2 * (2 * 256 + 2 * 128 + 3 * 384 + 2 * 16) + 16)
    scorer = policy - 4 * 32 * 16 + 4 * 16  # a score in place of a head
    assert learner.weights == policy + 2 * scorer
    assert scoring.weights == policy + scorer  # reward and cost are one folder here
    assert scoring.gradients == scoring.optimizer == 0
    assert rollout.weights == policy
    assert rollout.buffers == 2**30
    free = train_config(folder, rollout={**lengths, "copies": 2}, ppo={"advantage": "rloo"})
    assert plan(free)[0].memory.weights == policy
    fit = parse_settings(
        FitConfig, {"data": {"policy": str(folder), "train": "t"}, "objective": {"type": "cost"}}
    )
    (trainer,) = plan(fit)
    assert trainer.memory.weights == scorer


def test_what_does_not_fit_is_said_with_what_would_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SHAPES["8b"].save_pretrained(tmp_path / "8b")
    gpus = {name: {"gpus": 1} for name in ("scoring", "rollout")}
    gpus["rollout"] |= {"prompts_per_iteration": 96, "copies": 2}
    learner = {"gpus": 1, "num_workers": 6, "zero_stage": 2}
    ppo = {"minibatch_size": 48, "advantage": "rloo"}
    changes = {"device": "cuda", "dtype": "bfloat16", "ppo": ppo, "learner": learner, **gpus}
    config = train_config(tmp_path / "8b", **changes)
    help_ = r"learner: more than 86 GB of H100; it would fit with learner.activation_checkpointing"
    with pytest.raises(ResourceError, match=help_):
        show_plan(config, "H100:8")
    assert "learner" in capsys.readouterr().out
    with pytest.raises(ResourceError, match=r"reserve 8 GPUs of 4; lower num_workers"):
        show_plan(config, "H100:4")
    for kind in ("H100:0", "B7:8", "H100:many"):
        with pytest.raises(ConfigError, match=r"must be a kind and a number, as H100:8"):
            show_plan(config, kind)
    with pytest.raises(ConfigError, match=r"needs to know the GPUs; try --gpus H100:8"):
        show_plan(config, "")
    with pytest.raises(ConfigError, match=r"device \(cpu\) has no GPUs"):
        show_plan(train_config(tmp_path / "8b"), "H100:8")
    with pytest.raises(ConfigError, match=r"must name a model folder to plan for"):
        show_plan(TrainConfig(), "")


@pytest.mark.parametrize("file", sorted(PRESETS.glob("*.yaml")), ids=lambda file: file.stem)
def test_presets_fit_the_gpus_that_they_are_named_for(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = "8b" if "8b" in file.stem else "0.5b"
    SHAPES[shape].save_pretrained(tmp_path / shape)
    config = load_settings(TrainConfig, [file], [])
    names = {getattr(config.data, name) for name in ("policy", "reward", "cost")}
    data = {name: str(tmp_path / shape) for name in ("policy", "reward", "cost")}
    assert names == {"models/my-chat", "models/my-scorer"}
    config = config.model_copy(update={"data": config.data.model_copy(update=data)})
    assert show_plan(config, "H100:8" if "node" in file.stem else "H100:1") == 0
    assert "fits: 86 GB of H100" in capsys.readouterr().out


def test_the_command_plans_for_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_policy(tmp_path / "model")
    data = f"data={{policy: {folder}, reward: {folder}, cost: {folder}, prompts: p}}"
    assert cli.main(["plan", data]) == 0
    out = capsys.readouterr().out
    assert "of this machine" in out
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["learner", "scoring", "rollout"]


def test_a_run_that_does_not_fit_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_policy(tmp_path / "model")
    lengths = {"max_model_len": 32, "max_new_tokens": 16, "memory_gib": 1e-4}
    config = train_config(folder, rollout=lengths)
    warn_of_memory(config)
    assert not caplog.records
    size = sum(one.memory.total for one in plan(config))
    for memory, num_warnings in ((size, 0), (size - 1, 1)):
        device = Device(name="this machine", memory=memory, is_gpu=False)
        monkeypatch.setattr(commands, "_device", lambda *_, device=device: (device, 0))
        monkeypatch.setattr(commands, "SMALL", 10**9)
        warn_of_memory(config)
        assert len(caplog.records) == num_warnings
    assert "it would fit with learner.activation_checkpointing=true" in caplog.text
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    warn_of_memory(config)
    assert len(caplog.records) == 1


GPU = Device(name="H100", memory=100 * 10**9, is_gpu=True)


def part(name: str, size: int, gpus: float, processes: int = 1) -> Part:
    memory = Memory(weights=size * 10**9)
    return Part(name=name, processes=processes, memory=memory, gpus=gpus)


def test_an_engine_may_fill_nine_tenths_of_its_share_less_what_it_measures_with() -> None:
    # 0.9 x 50 GB - 1 GiB = 43.9 GB; of others 0.5 x (100 GB - 2 GiB) = 48.9 GB.
    parts = [part("rollout", 43, 0.5), part("scoring", 48, 0.5)]
    assert too_large(parts, GPU) == []
    parts = [part("rollout", 44, 0.5), part("scoring", 49, 0.5)]
    assert too_large(parts, GPU) == parts


@pytest.mark.parametrize(
    ("shares", "expected"),
    [([0.6, 0.6, 0.6], 3), ([0.6, 0.4, 0.3, 0.7], 2), ([1, 0.5, 2], 4), ([], 0)],
)
def test_shares_are_packed_onto_whole_gpus(shares: list[float], expected: int) -> None:
    assert commands._gpus_for([part("learner", 1, share) for share in shares]) == expected


def test_advice_helps_or_says_that_nothing_does(tmp_path: Path) -> None:
    for name in ("8b", "0.5b"):
        SHAPES[name].save_pretrained(tmp_path / name)
    narrow = {"device": "cuda", "dtype": "bfloat16", "ppo": {"advantage": "rloo"}}
    groups: dict[str, Any] = {"learner": {"gpus": 1}, "scoring": {"gpus": 0.2}}
    groups["rollout"] = {"gpus": 0.8, "copies": 2}
    small = train_config(tmp_path / "0.5b", **narrow, **groups)
    changed = small.data.model_copy(update={"reward": str(tmp_path / "8b")})
    mixed = small.model_copy(update={"data": changed})
    with pytest.raises(ResourceError, match=r"scoring: .*give scoring.gpus a larger share"):
        show_plan(mixed, "H100:2")
    # Six models of 16 GB do not fit one GPU, whatever the learner does.
    more = {str(tmp_path / f"8b-{number}"): 1.0 for number in range(5)}
    for folder in more:
        SHAPES["8b"].save_pretrained(folder)
    groups["scoring"]["gpus"] = 1
    data = dict.fromkeys(("policy", "reward", "cost", "prompts"), str(tmp_path / "0.5b"))
    crowded = {"data": data | {"more_rewards": more}, **narrow, **groups}
    config = parse_settings(TrainConfig, crowded)
    with pytest.raises(
        ResourceError, match=r"scoring: .*not even .* would do; take more or larger"
    ):
        show_plan(config, "H100:3")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="my-chat: no such folder"):
        show_plan(train_config(tmp_path / "my-chat"), "")


def test_every_process_of_an_offline_training_is_planned(tmp_path: Path) -> None:
    folder = str(write_policy(tmp_path / "model"))
    data = {"policy": folder, "train": "t"}
    lengths = {"max_model_len": 32, "max_new_tokens": 16}
    scorers = {"reward": folder, "cost": folder}
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"objective": {"type": "sft"}}, ["trainer"]),
        ({"objective": {"type": "dpo"}}, ["trainer", "scoring"]),
        ({"objective": {"type": "ars"}, "data": data | scorers}, ["trainer", "scoring", "rollout"]),
        (
            {"objective": {"type": "sft"}, "data": data | {"evaluation": "e"}},
            ["trainer", "rollout"],
        ),
    ]
    for tree, names in cases:
        config = parse_settings(FitConfig, {"data": data, "rollout": lengths} | tree)
        assert [one.name for one in plan(config)] == names


def test_seconds_follow_what_is_asked_of_the_gpus(tmp_path: Path) -> None:
    SHAPES["8b"].save_pretrained(tmp_path / "8b")
    groups: dict[str, Any] = {"scoring": {"gpus": 1}, "rollout": {"gpus": 1, "copies": 2}}

    def seconds(**learner: Any) -> Any:
        tree = {"device": "cuda", "dtype": "bfloat16", "ppo": {"advantage": "rloo"}}
        config = train_config(tmp_path / "8b", **tree, **groups, learner={"gpus": 1} | learner)
        return iteration_seconds(config, GPUS["H100"])

    plain = seconds()
    assert seconds(adapter={}).update == pytest.approx(plain.update * 2 / 3)
    assert seconds(activation_checkpointing=True).update == pytest.approx(plain.update * 4 / 3)
    groups["scoring"]["num_workers"] = 3
    # Of one pass of the learner and three of the scorers' GPU one and one are left.
    assert seconds().scoring == pytest.approx(plain.scoring / 2)


def test_parts_of_different_turns_do_not_add_up() -> None:
    machine = Device(name="this machine", memory=10 * 10**9, is_gpu=False)
    parts = [part("trainer", 9, 0), replace(part("scoring", 6, 0), turn=1)]
    assert too_large(parts, machine) == []
    crowded = [*parts, replace(part("rollout", 5, 0), turn=1)]
    assert too_large(crowded, machine) == crowded[1:]
    assert too_large([replace(one, turn=0) for one in parts], machine) != []
