"""Results on disk: what comes back is what went in, and what is broken is named."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from equilibrate.errors import ConfigError, DataError
from equilibrate.study import (
    expand,
    missing_runs,
    plan_runs,
    read_results,
    results_by_arm,
    write_result,
)
from tests.unit.study.studies import HARMS, plan, resolve, result, results, study

RUN = plan(study())[0]
MADE = result(RUN, harm=0.25, seconds=12.5)


def test_round_trip(tmp_path: Path):
    path = write_result(tmp_path / "new" / "folder", MADE)
    assert path == tmp_path / "new" / "folder" / f"{RUN.key}.json"
    assert read_results(path.parent, resolve) == {RUN.key: MADE}
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no leftovers


def test_numbers_are_rounded_and_a_number_that_is_none_is_null(tmp_path: Path):
    rough = dataclasses.replace(
        MADE, training={"labels": 1234.56789, "kept_fraction": math.nan}, seconds=1.23456
    )
    path = write_result(tmp_path, rough)
    content = json.loads(path.read_text())
    assert content["training"] == {"labels": 1234.57, "kept_fraction": None}
    assert content["seconds"] == 1.235
    assert path.read_text().startswith('{\n "key": ')
    assert math.isnan(read_results(tmp_path, resolve)[RUN.key].training["kept_fraction"])


def test_writing_again_replaces(tmp_path: Path):
    write_result(tmp_path, MADE)
    later = dataclasses.replace(MADE, seconds=99.0)
    write_result(tmp_path, later)
    assert read_results(tmp_path, resolve) == {RUN.key: later}


def test_a_missing_folder_has_no_results(tmp_path: Path):
    assert read_results(tmp_path / "nowhere", resolve) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"key": ', "Expecting value"),
        ("[]", "must be a mapping, not a list"),
        ("{}", "must hold key, kind, seed"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, says: str):
    (tmp_path / "abc.json").write_text(text)
    with pytest.raises(DataError, match=rf"abc\.json: .*{says}.*; delete it, and the study"):
        read_results(tmp_path, resolve)


@pytest.mark.parametrize(
    ("part", "value"),
    [("aligned", {}), ("training", [1.0]), ("training", {"labels": "many"}), ("seed", "first")],
)
def test_a_part_of_another_kind_is_refused(tmp_path: Path, part: str, value: object):
    path = write_result(tmp_path, MADE)
    path.write_text(json.dumps({**json.loads(path.read_text()), part: value}))
    with pytest.raises(DataError, match="must hold what `write_result` writes"):
        read_results(tmp_path, resolve)


def test_a_file_under_another_name_is_refused(tmp_path: Path):
    write_result(tmp_path, MADE).rename(tmp_path / "best.json")
    with pytest.raises(DataError, match=rf"best\.json: its name must be its key \({RUN.key}\)"):
        read_results(tmp_path, resolve)


def test_a_setting_added_later_counts_at_its_default(tmp_path: Path):
    write_result(tmp_path, MADE)

    def resolve_today(kind: str, written: Any) -> dict[str, Any]:
        return {"floor": 0.0, **resolve(kind, written)}

    today = plan_runs(expand(study(), {}), resolve_today)
    assert today[0].key != RUN.key
    assert read_results(tmp_path, resolve_today) == {today[0].key: MADE}
    assert missing_runs(today, read_results(tmp_path, resolve_today)) == today[1:]


def test_of_two_results_for_one_run_the_one_made_as_today_wins(tmp_path: Path):
    def resolve_today(kind: str, written: Any) -> dict[str, Any]:
        return {"floor": 0.0, **resolve(kind, written)}

    today = plan_runs(expand(study(), {}), resolve_today)[0]
    newer = dataclasses.replace(MADE, key=today.key, config=today.config, seconds=99.0)
    for first, second in ((MADE, newer), (newer, MADE)):
        folder = tmp_path / first.key
        write_result(folder, first)
        write_result(folder, second)
        assert read_results(folder, resolve_today) == {today.key: newer}


def test_a_result_of_no_known_kind_is_refused(tmp_path: Path):
    path = write_result(tmp_path, MADE)
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "ppo"}))
    with pytest.raises(DataError, match=r"kind \('ppo'\) must be one of train, fit"):
        read_results(tmp_path, resolve)


def test_settings_that_are_refused_today_belong_to_no_run(tmp_path: Path):
    write_result(tmp_path, MADE)

    def resolve_today(kind: str, written: Any) -> dict[str, Any]:
        raise ConfigError(f"{kind}: unknown key")

    assert read_results(tmp_path, resolve_today) == {RUN.key: MADE}


def test_results_find_their_arms():
    config = study(seeds=[0, 1])
    made = results(config, {"few": [0.3, 0.4], "many": [0.2]})
    by_arm = results_by_arm(plan(config), {**made, "of another study": MADE})
    assert {arm: list(seeds) for arm, seeds in by_arm.items()} == {
        "few": [0, 1],
        "many": [0],
        "offline": [],
    }
    assert by_arm["few"][1].aligned.mean_harm == pytest.approx(0.4)


def test_arms_that_share_a_run_share_its_result():
    arms = {"one": {"kind": "train"}, "two": {"kind": "train", "set": {"rows": 50}}}
    config = study(arms=arms, questions=[], seeds=[0])
    by_arm = results_by_arm(plan(config), results(config, {"one": [0.3]}))
    assert by_arm["one"] == by_arm["two"]
    assert list(by_arm["two"]) == [0]


def test_missing_runs_keep_their_order():
    config = study()
    missing = missing_runs(plan(config), results(config, HARMS))
    assert [(run.arms, run.seed) for run in missing] == [(("offline",), 3), (("offline",), 4)]
