"""Settings of an older format: step by step to that of today, and no further."""

from __future__ import annotations

from pathlib import Path

import pytest

from equilibrate.config import formats
from equilibrate.config.files import dump_config, load_run_config, load_settings, parse_config
from equilibrate.config.formats import (
    SETTINGS_FORMAT,
    STEPS,
    Step,
    carry,
    require_resumable,
    require_today,
)
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError

CHAIN = {
    1: Step(carry=lambda kind, config: {**config, "second": kind}, text="name the kind"),
    2: Step(carry=lambda kind, config: {**config, "third": len(config)}, text="count"),
}


@pytest.mark.parametrize(
    ("since", "carried"),
    [
        (1, {"first": 0, "second": "fit", "third": 2, "settings_format": 3}),
        (2, {"first": 0, "third": 1, "settings_format": 3}),
        (3, {"first": 0, "settings_format": 3}),
    ],
)
def test_each_step_is_taken_once_in_order(since: int, carried: dict[str, object]):
    recorded = {"first": 0}
    assert carry("fit", recorded, since, CHAIN) == carried
    assert recorded == {"first": 0}


@pytest.mark.parametrize("since", [0, 4])
def test_a_format_that_nobody_wrote_is_refused(since: int):
    with pytest.raises(DataError, match=rf"settings_format \({since}\) must be from 1 to 3"):
        carry("fit", {}, since, CHAIN)


def test_there_is_a_step_from_every_format_to_the_next():
    assert sorted(STEPS) == list(range(1, SETTINGS_FORMAT))


@pytest.mark.parametrize(
    ("kind", "policy", "objective", "prefer"),
    [("fit", "given", "dpo", "helpful"), ("fit", "given", "sft", "helpful"),
     ("fit", "given", "bfpo", None), ("fit", "", "dpo", None), ("train", "given", "dpo", None)],
)  # fmt: skip
def test_own_pairs_were_learned_by_helpfulness(
    kind: str, policy: str, objective: str, prefer: str | None
):
    recorded = {"data": {"policy": policy}, "objective": {"type": objective}}
    assert carry(kind, recorded, 3)["data"].get("prefer") == prefer


def test_settings_hold_the_number_of_their_format():
    assert f"settings_format: {SETTINGS_FORMAT}\n" in dump_config(TrainConfig())
    assert parse_config({"settings_format": SETTINGS_FORMAT}) == parse_config({}) == TrainConfig()


def test_older_settings_are_refused_with_what_carries_them_over(monkeypatch):
    monkeypatch.setattr(formats, "STEPS", CHAIN)
    monkeypatch.setattr(formats, "SETTINGS_FORMAT", 3)
    with pytest.raises(
        ValueError,
        match=r"^must be 3; to carry the settings over: count; write settings_format: 3$",
    ):
        require_today(2)
    with pytest.raises(ValueError, match="name the kind; count; write"):
        require_today(1)
    for number in (0, 4, "2"):
        with pytest.raises(ValueError, match="must be 3, the newest that this equilibrate reads"):
            require_today(number)


def test_a_run_folder_of_an_older_format_is_refused_by_name(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 4\n")  # as it was before there was a number
    rule = rf"settings_format \(1\): must be {SETTINGS_FORMAT}; to carry the settings over: .*write"
    with pytest.raises(ConfigError, match=rf"config\.yaml: {rule}"):
        load_run_config(tmp_path)
    # A file of settings that somebody wrote is one of today's, unless it says otherwise.
    assert load_settings(TrainConfig, [file]).seed == 4
    file.write_text("settings_format: 1\nseed: 4\n")
    with pytest.raises(ConfigError, match=rule):
        load_settings(TrainConfig, [file])


def test_a_state_of_another_format_cannot_be_resumed():
    require_resumable({"settings_format": SETTINGS_FORMAT}, "runs/a")
    for state, number in (({}, 1), ({"settings_format": 9}, 9)):
        with pytest.raises(ConfigError, match=f"^runs/a: was saved under settings_format {number}"):
            require_resumable(state, "runs/a")


def test_a_masked_dpo_of_format_2_learned_every_chosen_token():
    dpo, mask = {"type": "dpo", "nll_coef": 1.0}, {"source": "cost"}
    carried = STEPS[2].carry("fit", {"objective": dpo, "ama": mask})
    assert carried == {"objective": {**dpo, "nll_on": "all"}, "ama": mask}
    for other in (
        {"objective": dpo, "ama": None},  # without a mask there is no choice
        {"objective": {"type": "ars"}, "ama": mask},
        {"ppo": {}, "ama": mask},
    ):
        assert STEPS[2].carry("fit", other) == other
