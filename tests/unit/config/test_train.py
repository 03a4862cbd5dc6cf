from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from equilibrate.config.constraint import LogSgdMultiplier, PidMultiplier, ProjectedMultiplier
from equilibrate.config.files import (
    dump_config,
    load_config,
    load_run_config,
    parse_config,
    parse_settings,
)
from equilibrate.config.fit import FitConfig
from equilibrate.config.formats import SETTINGS_FORMAT
from equilibrate.config.train import AdaptiveKL, AmaConfig, FixedKL, TrainConfig
from equilibrate.errors import ConfigError, DataError
from equilibrate.types import Category
from tests.unit.config.configs import message_of


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_valid() -> None:
    assert load_config([]) == TrainConfig()
    assert isinstance(TrainConfig().constraint, PidMultiplier)
    assert TrainConfig().ama is None
    assert (
        TrainConfig(rollout={"prompts_per_iteration": 16, "copies": 4}).rollouts_per_iteration == 64
    )


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().ppo.epochs = 2  # type: ignore[misc]


def test_overrides_beat_later_files_beat_earlier_files_beat_defaults(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "seed: 1\niterations: 10\nppo: {epochs: 2, gamma: 0.5}\n")
    second = write(tmp_path / "b.yaml", "seed: 2\nppo: {epochs: 3}\n")
    config = load_config([first, second], ["seed=3", "seed=4"])
    assert config.seed == 4
    assert config.iterations == 10
    assert (config.ppo.epochs, config.ppo.gamma) == (3, 0.5)
    assert config.ppo.clip_range == 0.2


def test_one_file_is_not_changed_by_reading_it_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "ppo: {epochs: 2}\n")
    load_config([path], ["ppo.epochs=5"])
    assert load_config([path]).ppo.epochs == 2


def test_empty_file_means_defaults(tmp_path: Path) -> None:
    assert load_config([write(tmp_path / "a.yaml", "# nothing\n")]) == TrainConfig()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("learner.policy_lr=1e-3", 0.001),
        ("learner.zero_stage=2", 2),
        ("learner.lr_schedule=cosine", "cosine"),
        ("ama.baseline=0.5", 0.5),
        ("ama.baseline=batch_mean", "batch_mean"),
        ("ama.delta=no", False),
        ("ama.ungated=[GENERAL, BORDERLINE]", (Category.GENERAL, Category.BORDERLINE)),
        ("output=a=b", "a=b"),
        ("wandb_project=", None),
    ],
)
def test_overrides_are_yaml_values(override: str, value: object) -> None:
    if value is None:
        assert "wandb_project (None): Input should be a valid string" in message_of(override)
        return
    found: Any = load_config([], [override])
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("off", ["off", "'off'", "false", "null", "no"])
@pytest.mark.parametrize("key", ["ama", "constraint"])
def test_features_are_switched_off_by_any_spelling(tmp_path: Path, key: str, off: str) -> None:
    on = {"ama": "ama={}", "constraint": "constraint.budget=0.5"}[key]
    assert getattr(load_config([], [on]), key) is not None
    assert getattr(load_config([], [on, f"{key}={off}"]), key) is None
    assert getattr(load_config([], [f"{key}={off}"]), key) is None
    assert getattr(load_config([write(tmp_path / "a.yaml", f"{key}: {off}\n")]), key) is None


def test_a_feature_switched_off_can_be_switched_on_again() -> None:
    config = load_config([], ["ama=off", "ama.level=segment"])
    assert config.ama == AmaConfig(level="segment")
    assert load_config([], ["ama={}"]).ama == AmaConfig()


def test_mixture_is_replaced_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "fdc: {mixture: {GENERAL: 1, EHD: 1}}\n")
    config = load_config([path], ["fdc.mixture={IHD: 3}"])
    assert config.fdc.mixture == {Category.IHD: 3.0}


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("constraint={type: log_sgd, lr: 0.2}", LogSgdMultiplier),
        ("constraint={type: projected}", ProjectedMultiplier),
        ("constraint={type: pid, kp: 2}", PidMultiplier),
        ("ppo.kl={type: adaptive, target: 0.1}", AdaptiveKL),
        ("ppo.kl={type: fixed}", FixedKL),
    ],
)
def test_type_chooses_the_member_of_a_union(override: str, kind: type) -> None:
    config = load_config([], [override])
    assert kind in (type(config.constraint), type(config.ppo.kl))


@pytest.mark.parametrize("mixture", ["{GENERAL: 1}", "{GENERAL: 1, BORDERLINE: 2, EHD: 0}"])
def test_constraint_that_would_never_see_a_cost_is_refused(mixture: str) -> None:
    override = f"fdc.mixture={mixture}"
    message = message_of(override)
    assert "constraint.scope (safety) averages the cost of EHD, IHD and MHD" in message
    assert "try constraint.scope=all or constraint=off" in message
    for way_out in ("constraint.scope=all", "constraint=off", "fdc.mixture={GENERAL: 1, MHD: 1}"):
        load_config([], [override, way_out])


@pytest.mark.parametrize(
    ("override", "key", "rest"),
    [
        ("ppo.clip_rnage=0.1", "ppo.clip_rnage", "did you mean 'clip_range'?"),
        ("lerner.policy_lr=1", "lerner", "did you mean 'learner'?"),
        ("ama.pivots.rul=std", "ama.pivots.rul", "did you mean 'rule'?"),
        ("ama.pivots.xyz=1", "ama.pivots.xyz", "valid keys: rule, value"),
        ("data.zzzzzz=1", "data.zzzzzz", "valid keys: columns, cost, evaluation"),
    ],
)
def test_unknown_key_names_the_nearest(override: str, key: str, rest: str) -> None:
    assert message_of(override).startswith(f"{key} is not a known key; {rest}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.clip_range=2", "ppo.clip_range (2): Input should be less than 1"),
        ("ppo.epochs=0", "ppo.epochs (0): Input should be greater than 0"),
        ("iterations=1.5", "iterations (1.5): Input should be a valid integer"),
        ("device=gpu", "device ('gpu'): Input should be 'cpu' or 'cuda'"),
        ("ama.level=word", "ama.level ('word'): Input should be 'token', 'segment' or 'sequence'"),
        ("ama.ungated=[X]", "ama.ungated.0 ('X'): Input should be 'GENERAL', 'BORDERLINE'"),
        ("fdc.mixture={GENERAL: 0}", "fdc ({'mixture': {'GENERAL': 0}}): needs shares >= 0"),
        ("fdc.mixture={GENERAL: 2, EHD: -1}", "fdc ("),
        ("fdc.mixture={}", "fdc ("),
    ],
)
def test_broken_rule_names_key_value_and_rule(override: str, message: str) -> None:
    assert message_of(override).startswith(message)


def test_every_broken_rule_has_its_line() -> None:
    lines = message_of("ppo.epochs=0", "ppo.gamma=7", "sed=1").splitlines()
    assert [line.split()[0] for line in lines] == ["ppo.epochs", "ppo.gamma", "sed"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("rollout.prompts_per_iteration=65",),
            "rollout.prompts_per_iteration x rollout.copies (65) must be a multiple of "
            "ppo.minibatch_size (32); try ",
        ),
        (
            # Divisors of 32 next to 24: 16 and 32, the smaller comes first.
            ("learner.num_workers=24",),
            "ppo.minibatch_size (32) must be a multiple of learner.num_workers (24); "
            "try learner.num_workers=16",
        ),
        (
            ("rollout.max_new_tokens=2048",),
            "rollout.max_new_tokens (2048) must be below rollout.max_model_len (2048); try 1024",
        ),
        (
            ("constraint.init=3", "constraint.max=2"),
            "constraint.init (3.0) must be at most constraint.max (2.0); try 2.0",
        ),
        (
            ("data.policy=p", "data.reward=r", "data.prompts=x"),
            "data.policy is given, so data.cost must be given too; "
            "without data.policy the built-in world has all of them",
        ),
        (
            ("data.policy=p", "data.prompts=x"),
            "data.policy is given, so data.reward must be given too; "
            "without data.policy the built-in world has all of them",
        ),
        (
            (
                "data={policy: p, reward: r, cost: c, prompts: x}",
                "learner.ptx_coef=0.5",
            ),
            "learner.ptx_coef (0.5) needs data.ptx; give it or set it to 0",
        ),
    ],
)
def test_settings_that_do_not_fit_together(overrides: tuple[str, ...], message: str) -> None:
    found = message_of(*overrides)
    assert found.startswith(message)
    assert "\n" not in found


def test_advantages_without_critics_need_something_to_compare_with() -> None:
    assert message_of("ppo.advantage=rloo").endswith("rollout.copies (1) must be at least 2; try 4")
    load_config([], ["ppo.advantage=rloo", "rollout.copies=4"])
    assert message_of("ppo.advantage=grpo", "rollout.copies=2", "ppo.gamma=0.9").startswith(
        "ppo.gamma (0.9) must be 1"
    )
    found = message_of("ppo.advantage=reinforce_plus_plus", "ama.source=critics")
    assert found.startswith("ama.source (critics) needs critics, and ppo.advantage (reinforce_")


def test_a_critic_of_two_heads_needs_two_values() -> None:
    config = load_config([], ["learner.two_headed_critic=true"])
    assert config.critic_models == (("reward", "cost"),)
    assert load_config([], []).critic_models == (("reward",), ("cost",))
    for change, found in [
        (["constraint=off"], "has reward; try"),
        (["ppo.advantage=reinforce_plus_plus"], "has none; try"),
    ]:
        message = message_of("learner.two_headed_critic=true", *change)
        assert message.startswith("learner.two_headed_critic (true) needs values of rewards and")
        assert found in message


def test_own_data_without_constraint_and_mask_needs_no_cost_model() -> None:
    own = "data={policy: p, reward: r, prompts: x}"
    config = load_config([], [own, "ama=off", "constraint=off"])
    assert not config.data.is_built_in
    assert TrainConfig().data.is_built_in


@pytest.mark.parametrize("override", ["seed", "=1", ".seed=1", "ppo..epochs=1", "", "ppo.=1"])
def test_override_without_key_or_value(override: str) -> None:
    assert message_of(override) == (
        f"override {override!r} must read key.path=value, for example ppo.clip_range=0.1"
    )


def test_override_that_is_not_yaml() -> None:
    assert message_of("ppo={epochs") == "override 'ppo={epochs': the value '{epochs' is not YAML"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n", "must hold `key: value` lines, not a list"),
        (b"word\n", "must hold `key: value` lines, not a str"),
        (b"a: [1\n", "is not YAML"),
        (
            b"seed: 1\nppo: {epochs: 1}\nseed: 2\n",
            "is not YAML (line 3: seed is already set in line 1",
        ),
        (b"{seed: 1, seed: 2}\n", "is not YAML (line 1: seed is already set in line 1"),
        (
            b"ppo:\n  epochs: 1\n  epochs: 2\n",
            "is not YAML (line 3: epochs is already set in line 2",
        ),
        (b"a: \xff\n", "is not YAML"),
        (b"a: !!python/object/apply:os.getpid []\n", "is not YAML"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config([path])
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_folder_without_settings_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not the folder of a run \(it has no config\.yaml\)"):
        load_run_config(tmp_path)
    write(tmp_path / "config.yaml", f"settings_format: {SETTINGS_FORMAT}\nseed: 4\n")
    assert load_run_config(tmp_path).seed == 4


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read \(No such file"):
        load_config([tmp_path / "no.yaml"])


def test_keys_that_are_not_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 \(1\): Keys should be strings"):
        load_config([write(tmp_path / "a.yaml", "1: 2\n")])


ODD = {
    "output": "runs/\u00e4 b: #c",
    "seed": 7,
    "ama": None,
    "constraint": {"type": "log_sgd", "lr": 1e-7, "budget": -0.1},
    "fdc": {"mixture": {"IHD": 1e-9, "EHD": 3}, "when_short": "error"},
    "ppo": {"kl": {"type": "adaptive", "target": 0.5}},
    "learner": {"policy_lr": 1.5e-6},
}


@pytest.mark.parametrize("tree", [{}, ODD, {"ama": {"baseline": 0.1, "ungated": ["GENERAL"]}}])
def test_dumped_config_loads_to_the_same(tmp_path: Path, tree: dict[str, Any]) -> None:
    config = parse_config(tree)
    path = write(tmp_path / "config.yaml", dump_config(config))
    assert load_config([path]) == config
    assert dump_config(load_config([path])) == dump_config(config)


@given(st.floats(1e-12, 1e6), st.floats(-1e6, 1e6), st.text(max_size=20))
def test_numbers_and_texts_survive_the_dump(lr: float, budget: float, project: str) -> None:
    config = parse_config(
        {
            "learner": {"policy_lr": lr},
            "constraint": {"type": "pid", "budget": budget},
            "wandb_project": project,
        }
    )
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("../../x", r"must not lead out of the working folder; try its whole path, /.*x"),
        ("runs/../../x", "must not lead out of the working folder"),
        ("s3://bucket/runs", "must be a folder of a file system, not an address; mount the store"),
        ("hdfs://host:9000/runs", "not an address"),
        ("~/runs", r"must be written out; try /.*runs"),
        ("", "must name a folder; try runs/mine"),
        (" ", "must name a folder"),
        ("a\0b", "must name a folder"),
    ],
)
def test_an_output_that_is_no_folder_here_is_refused(output: str, answer: str) -> None:
    for parse in (parse_config, partial(parse_settings, FitConfig)):
        with pytest.raises(ConfigError, match=f"^output .*{answer}"):
            parse({"output": output, "fdc": {}})


@pytest.mark.parametrize("output", ["/data/runs", "runs/mine", "./x/../y", "a:b", "..a", "s3"])
def test_folders_below_the_working_folder_and_whole_paths_are_outputs(output: str) -> None:
    assert parse_config({"output": output}).output == output


def test_every_setting_is_closed_and_frozen() -> None:
    seen: list[type[BaseModel]] = [TrainConfig, AmaConfig]
    for model in seen:
        assert model.model_config.get("extra") == "forbid"
        assert model.model_config.get("frozen") is True
        for name in model.model_fields:
            value = getattr(model.model_construct(), name)
            if isinstance(value, BaseModel) and type(value) not in seen:
                seen.append(type(value))
    # TrainConfig, data, sandbox, fdc, rollout, scoring, learner, ppo, kl, constraint, ama, pivots.
    assert len(seen) >= 12


def test_the_day_that_templates_read_survives_the_run_folder(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("text:\n  date: 2026-11-29\n  template_arguments: {enable_thinking: off}\n")
    config = load_config([file])
    assert str(config.text.date) == "2026-11-29"
    assert config.text.template_arguments == {"enable_thinking": False}
    file.write_text(dump_config(config))
    assert load_config([file]) == config
    assert str(TrainConfig().text.date) == "2024-07-26"


@pytest.mark.parametrize("name", ["messages", "strftime_now", "not a name"])
def test_variables_of_a_template_that_are_ours_are_refused(name):
    message = message_of(f"text.template_arguments={{{name}: x}}")
    assert f"{name!r} must be a variable of the chat template that is not ours" in message
    message = message_of("text.date=today")
    assert message.startswith("text.date ('today'): ")
