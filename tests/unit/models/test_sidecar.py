"""The file that says what a score means: exact round trip, and refusals that name key and value."""

import dataclasses
import json
import math

import pytest

from equilibrate.errors import DataError
from equilibrate.models.sidecar import (
    SIDECAR_FILE,
    ScorerSidecar,
    place_of,
    propose_budget,
    read_heads,
    read_sidecar,
    write_sidecar,
)

COST = ScorerSidecar(
    kind="cost", threshold=0.25, bias=-0.5, scale=2.0, calibration={"ranking_accuracy": 0.875}
)


def test_read_returns_what_was_written(tmp_path):
    write_sidecar(tmp_path, COST)
    assert read_sidecar(tmp_path, kind="cost") == COST


@pytest.mark.parametrize(
    ("kind", "meaning"), [("reward", "more helpful"), ("cost", "more harmful")]
)
def test_the_sign_convention_follows_from_the_kind(tmp_path, kind, meaning):
    write_sidecar(tmp_path, ScorerSidecar(kind=kind))
    assert json.loads((tmp_path / SIDECAR_FILE).read_text())["larger_means"] == meaning


def test_the_smallest_file_by_hand_is_enough(tmp_path):
    (tmp_path / SIDECAR_FILE).write_text('{"kind": "reward"}')
    assert read_sidecar(tmp_path, kind="reward") == ScorerSidecar(
        kind="reward", threshold=0.0, bias=0.0, scale=1.0
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not JSON"]),
        ("[1]", ["one JSON object", "list"]),
        ("{}", ["kind is missing"]),
        ('{"kind": "harm"}', ["kind", "'harm'"]),
        ('{"kind": "cost", "treshold": 1}', ["unknown key", "'treshold'", "threshold"]),
        ('{"kind": "cost", "threshold": "0"}', ["threshold", "'0'", "finite number"]),
        ('{"kind": "cost", "scale": NaN}', ["scale", "nan"]),
        ('{"kind": "cost", "bias": true}', ["bias", "True"]),
        ('{"kind": "cost", "pooling": "mean"}', ["pooling", "'mean'", "last_token"]),
        (
            '{"kind": "cost", "larger_means": "safer"}',
            ["larger_means", "more harmful", "scale = -1"],
        ),
        ('{"heads": 3}', ["heads must be a list", "int"]),
        ('{"heads": [], "kind": "cost"}', ["unknown key 'kind' beside heads"]),
        ('{"heads": [{"kind": "cost"}]}', ["heads (cost) must be one of each kind: reward, cost"]),
        ('{"heads": [{"kind": "cost"}, {"kind": "cost"}]}', ["heads (cost, cost) must be one of"]),
        ('{"heads": [{"kind": "reward"}, 3]}', ["heads[1] must be one JSON object, got int"]),
        ('{"heads": [{"kind": "reward"}, {"bias": 1}]}', ["heads[1].kind is missing"]),
        ('{"heads": [{"kind": "cost", "zero": 1}]}', ["unknown key 'heads[0].zero'"]),
        ('{"kind": "cost", "calibration": 3}', ["calibration", "3"]),
        ('{"kind": "cost", "calibration": {"safe_mean": null}}', ["calibration.safe_mean", "None"]),
    ],
)
def test_a_bad_file_is_refused_with_key_value_and_rule(tmp_path, text, words):
    (tmp_path / SIDECAR_FILE).write_text(text)
    with pytest.raises(DataError) as caught:
        read_sidecar(tmp_path, kind="cost")
    assert str(tmp_path / SIDECAR_FILE) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="missing"):
        read_sidecar(tmp_path, kind="cost")


def test_a_reward_model_is_refused_where_a_cost_model_is_needed(tmp_path):
    write_sidecar(tmp_path, ScorerSidecar(kind="reward"))
    with pytest.raises(DataError, match=r"'reward'.*must be 'cost'"):
        read_sidecar(tmp_path, kind="cost")


def test_each_head_of_a_model_is_found_by_its_kind(tmp_path):
    reward = ScorerSidecar(kind="reward", scale=3.0)
    write_sidecar(tmp_path, COST, reward)
    assert read_heads(tmp_path) == (COST, reward)
    assert read_sidecar(tmp_path, kind="cost") == COST
    assert place_of("reward", read_heads(tmp_path), tmp_path) == (1, reward)


def test_a_sidecar_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        COST.threshold = math.pi  # type: ignore[misc]


def test_a_budget_is_the_mean_cost_of_a_mixture(tmp_path):
    calibration = {"safe_mean": -2.0, "unsafe_mean": 1.0}
    write_sidecar(tmp_path, dataclasses.replace(COST, calibration=calibration))
    assert propose_budget(tmp_path, 0.05) == -1.85  # 0.95 * -2 + 0.05 * 1
    assert propose_budget(tmp_path, 0.5) == -0.5


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ({}, r"no calibration .*set steps\.align\.constraint\.budget"),
        ({"safe_mean": 1.0, "unsafe_mean": 1.0}, r"safe answers \(1\) must be below .*\(1\)"),
    ],
)
def test_no_budget_from_a_cost_that_says_too_little(tmp_path, calibration, message):
    write_sidecar(tmp_path, dataclasses.replace(COST, calibration=calibration))
    with pytest.raises(DataError, match=message):
        propose_budget(tmp_path, 0.05)
