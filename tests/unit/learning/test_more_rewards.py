"""Rewards beside the first: how they are given, what they are known by, and what an answer has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from equilibrate.config.files import load_config, parse_settings
from equilibrate.config.identity import fixed_on_resume, input_paths, result_settings
from equilibrate.config.inputs import RewardTerm
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError
from equilibrate.report.card import ingredients
from equilibrate.report.html import leaves
from equilibrate.report.inputs import CONFIG_FILE
from equilibrate.run.door import check_inputs
from equilibrate.run.folder import INPUTS_FILE, own_run_folder
from equilibrate.types import Category, FinishReason, Message, Rollout
from tests.tiny_models import write_models
from tests.unit.learning.test_scoring_worker import make_worker

ASKED = {"policy": "p", "reward": "r", "cost": "c", "prompts": "x.jsonl"}
TERMS = {"length.py:brief": -0.5, "models/polite": 2}


def config(terms: object, **changes: Any) -> TrainConfig:
    data = {**ASKED, "more_rewards": terms, **changes.pop("data", {})}
    return parse_settings(TrainConfig, {"data": data, **changes})


def test_a_mapping_is_read_and_written_so_that_it_reads_as_the_same() -> None:
    found = config(TERMS)
    assert found.data.more_rewards == (
        RewardTerm(source="length.py:brief", weight=-0.5),
        RewardTerm(source="models/polite", weight=2.0),
    )
    assert parse_settings(TrainConfig, found.model_dump(mode="json")) == found
    for nothing in ({}, [], None, "off", ""):
        assert config(nothing).data.more_rewards == ()


def test_a_later_mapping_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(json.dumps({"data": {**ASKED, "more_rewards": TERMS}}))
    for written, sources in (
        ("{b.py:g: 2}", ["b.py:g"]),
        ("{}", []),
        ("off", []),
    ):
        found = load_config([tmp_path / "a.yaml"], [f"data.more_rewards={written}"])
        assert [term.source for term in found.data.more_rewards] == sources


def test_no_password_of_an_address_is_shown() -> None:
    terms = {"http://me:SECRET@h/score?key=SECRET": 1}
    shown = dict(leaves(config(terms).model_dump(mode="json")))["data.more_rewards"]
    assert "http://h/score" in shown
    assert "SECRET" not in shown
    for data in ({"reward": ""}, {"reward": next(iter(terms))}, {"policy": ""}):
        with pytest.raises(ConfigError) as refused:
            config(terms, data=data)
        assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    ("terms", "changes", "rule"),
    [
        ({"a.py:f": 0}, {}, r"weight.*\(0\) leaves its reward out"),
        ({"a.py:f": float("nan")}, {}, "weight"),
        ({"a.py:f": "much"}, {}, r"more_rewards\.0\.weight"),
        ({"": 1}, {}, "source"),
        ({"a.py:f": True}, {}, r"more_rewards\.0\.weight"),
        ("a.py:f", {}, r"must map sources to weights, for example \{length\.py:brief: 0\.1\}"),
        ({"r/": 1}, {}, "r stands there twice"),
        ({"a": 1, "./a": 1}, {}, "a stands there twice"),
        ([{"file": "a", "weight": 1}], {}, "file is not a known key; valid keys: source, weight"),
        ({"r": 1}, {}, "r stands there twice, or as reward too"),
        ([{"source": "a", "weight": 1}] * 2, {}, "a stands there twice"),
        ({"a": 1}, {"data": {"reward": ""}}, r"\(a\) are added to reward, which is not given"),
        (
            {"a.py:f": 1},
            {"ama": {"source": "both"}},
            r"score of every token, and data\.more_rewards \(a\.py:f\)",
        ),
    ],
)
def test_what_cannot_be_added_is_refused_by_name(
    terms: object, changes: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        config(terms, **changes)


def test_a_mask_that_reads_costs_alone_takes_any_reward() -> None:
    assert config(TERMS, ama={"source": "cost"}).ama is not None


def test_weights_count_and_places_do_not() -> None:
    elsewhere = {"lib/length.py:brief": -0.5, "polite": 2}
    heavier = {"length.py:brief": -0.5, "models/polite": 3}
    for settings in (result_settings, fixed_on_resume):
        assert settings(config(TERMS)) == settings(config(elsewhere))
        assert settings(config(TERMS)) != settings(config(heavier))
    found = input_paths(config({**TERMS, "http://h/score": 1}))
    assert found["data.more_rewards[0]"] == "length.py:brief"
    assert found["data.more_rewards[1]"] == Path("models/polite")
    assert found["data.more_rewards[2]"] == "http://h/score"


FUNCTION = "def turns(asked): return [len(one['messages']) for one in asked]"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FUNCTION)
    folder = write_models(tmp_path)
    for kind in ("reward", "cost"):
        AutoTokenizer.from_pretrained(folder / "policy").save_pretrained(folder / kind)
    return folder


@pytest.mark.parametrize(
    ("term", "rule"),
    [
        ("gone", r"data\.more_rewards \('.*gone'\) does not exist; .*FILE\.py:function"),
        ("mine.py:none", r"mine\.py.*none"),
        ("cost", r"kind \('cost'\) must be 'reward'"),
    ],
)
def test_what_is_no_reward_is_refused_at_the_door(models: Path, term: str, rule: str) -> None:
    rows = [{"prompt": f"how {row} ?", "category": "GENERAL"} for row in range(8)]
    (models / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {key: str(models / name) for key, name in ASKED.items() if key == "prompts"}
    paths |= {kind: str(models / kind) for kind in ("policy", "reward", "cost")}
    sizes = {"max_model_len": 32, "max_new_tokens": 4}
    settings = {"fdc": {"mixture": {"GENERAL": 1}}, "constraint": "off", "rollout": sizes}
    settings["output"] = str(models / "run")
    good = config({str(models / "mine.py:turns"): 1}, data=paths, **settings)
    check_inputs(good, models / "run")
    with own_run_folder(good) as run:  # it takes down what every input holds
        assert run is not None
        held = json.loads((run / INPUTS_FILE).read_text())
    assert "data.more_rewards[0]" in held
    bad = config({str(models / "mine.py:turns"): 1, str(models / term): 1}, data=paths, **settings)
    with pytest.raises(DataError, match=rule):
        check_inputs(bad, models / "run")


def test_an_answer_has_every_score_times_its_weight(models: Path) -> None:
    rollouts = [
        Rollout(
            prompt_id=str(length),
            copy=0,
            category=Category.GENERAL,
            policy_version=0,
            token_ids=np.arange(4, 4 + length),
            response_mask=np.arange(length) >= 2,
            rollout_log_probs=np.zeros(length, np.float32),
            finish_reason=FinishReason.STOP,
            messages=(Message(role="user", content="how ?"),) * turns,
        )
        for length, turns in ((7, 1), (12, 2))
    ]
    shutil.copytree(models / "reward", models / "other")
    sidecar = json.loads((models / "other" / "equilibrate_score.json").read_text())
    sidecar["threshold"] = sidecar.get("threshold", 0.0) - 3.0  # so that every prefix has 3 more
    (models / "other" / "equilibrate_score.json").write_text(json.dumps(sidecar))

    def scored(**more: Any) -> Any:
        return make_worker(models, reference=str(models / "policy"), **more).score(rollouts)

    terms = [(str(models / "other"), 2.0), (f"{models}/mine.py:turns", -0.5)]
    for before, one, turns in zip(scored(), scored(more_rewards=terms), (1, 2), strict=True):
        of_models = 3 * before.token_rewards + 2 * 3.0
        np.testing.assert_allclose(one.token_rewards[:-1], of_models[:-1], rtol=1e-5)
        assert one.reward == pytest.approx(3 * before.reward + 6.0 - 0.5 * turns, abs=1e-5)
        assert one.token_rewards[-1] == pytest.approx(one.reward, abs=1e-5)
        assert one.cost == before.cost
        np.testing.assert_array_equal(one.token_costs, before.token_costs)


def test_the_card_names_each_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    terms = [{"source": s, "weight": w} for s, w in TERMS.items()]
    content = {"data": {**ASKED, "more_rewards": terms}}
    (tmp_path / "run" / CONFIG_FILE).write_text(json.dumps(content))
    hashes = {"data.more_rewards[0]": "0" * 32, "data.more_rewards[1]": "1" * 32}
    (tmp_path / "run" / INPUTS_FILE).write_text(json.dumps(hashes))
    found = [(row["key"], row["name"]) for row in ingredients(tmp_path / "run")]
    assert found == [("more_rewards[0]", "brief"), ("more_rewards[1]", "polite")]
