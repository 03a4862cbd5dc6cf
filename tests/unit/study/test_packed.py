"""Results in one file: what comes back is what went in, and what is broken is named."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from equilibrate.errors import ConfigError, DataError
from equilibrate.study import (
    expand,
    missing_runs,
    packed,
    plan_runs,
    read_results,
    results_by_arm,
    take_in,
    write_result,
)
from tests.unit.study.studies import HARMS, TREE, plan, resolve, result, results, study

RUN, OTHER = plan(study())[:2]
MADE = result(RUN, harm=0.25, seconds=12.5)


def with_key(key: str) -> Any:
    return dataclasses.replace(MADE, key=key)


def changed(file: Path, **parts: object) -> None:
    """Other parts in the only line."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **parts}) + "\n")


def test_round_trip(tmp_path: Path):
    file = tmp_path / "new" / "folder" / "results.jsonl"
    write_result(file, MADE)
    assert read_results(file, resolve) == {RUN.key: MADE}
    # Nothing is left over but the lock, which another process may hold by now.
    assert {path.name for path in file.parent.iterdir()} == {file.name, f".{file.name}.lock"}


def test_the_last_result_counts_without_a_line_break_behind_it(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    for key in ("aaa", "bbb"):
        write_result(file, with_key(key))
    file.write_text(file.read_text().rstrip("\n"))
    write_result(file, with_key("ccc"))
    assert len(file.read_text().splitlines()) == 3


def test_lines_are_sorted_and_stay_as_they_are(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    write_result(file, with_key("bbb"))
    changed(file, added_by_a_newer_version=1)
    line = file.read_text()
    for key in ("ccc", "aaa"):
        write_result(file, with_key(key))
    assert [json.loads(row)["key"] for row in file.read_text().splitlines()] == [
        "aaa",
        "bbb",
        "ccc",
    ]
    assert line in file.read_text()


def test_numbers_are_rounded_and_a_number_that_is_none_is_null(tmp_path: Path):
    rough = dataclasses.replace(
        MADE, training={"labels": 1234.56789, "kept_fraction": math.nan}, seconds=1.23456
    )
    file = tmp_path / "results.jsonl"
    write_result(file, rough)
    content = json.loads(file.read_text())
    assert content["training"] == {"labels": 1234.57, "kept_fraction": None}
    assert content["seconds"] == 1.235
    assert file.read_text().startswith('{"key": ')
    assert math.isnan(read_results(file, resolve)[RUN.key].training["kept_fraction"])


def test_writing_again_replaces(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    write_result(file, MADE)
    later = dataclasses.replace(MADE, seconds=99.0)
    write_result(file, later)
    assert read_results(file, resolve) == {RUN.key: later}


def test_a_missing_file_has_no_results(tmp_path: Path):
    assert read_results(tmp_path / "nowhere.jsonl", resolve) == {}


def _write_many(file: Path, name: str) -> None:
    for number in range(1_000):
        write_result(file, with_key(f"{name}{number:03d}"))


def test_processes_that_write_at_once_lose_nothing_and_nor_does_a_kill(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(file, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    seen: set[str] = set()
    deadline = time.monotonic() + 60
    # Until each has written several, in turns; what was once there must stay.
    while any(sum(key.startswith(name) for key in seen) < 5 for name in "abc"):
        assert time.monotonic() < deadline
        now = set(read_results(file, lambda kind, config: _refuse()))
        assert seen <= now
        seen = now
    for writer in writers:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    left = set(read_results(file, lambda kind, config: _refuse()))
    assert seen <= left
    for name in "abc":  # each wrote its own in order: none is missing in between
        numbers = sorted(int(key[1:]) for key in left if key.startswith(name))
        assert numbers == list(range(len(numbers)))
    write_result(file, with_key("after"))  # the dead hold no lock
    assert set(read_results(file, lambda kind, config: _refuse())) == left | {"after"}


def _refuse() -> dict[str, Any]:
    raise ConfigError("the key under which it was made counts")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"key": \n', "Expecting value"),
        ("[]\n", "must be a mapping, not a list"),
        ("{}\n", "must hold key, kind, seed"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, text: str, says: str):
    file = tmp_path / "abc.jsonl"
    write_result(file, MADE)
    before = file.read_text() + text
    file.write_text(before)
    with pytest.raises(DataError, match=rf"abc\.jsonl:2: .*{says}.*; delete the line, and the"):
        read_results(file, resolve)
    with pytest.raises(DataError, match=r"abc\.jsonl:2: "):
        write_result(file, with_key("another"))
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("aligned", {}),
        ("training", [1.0]),
        ("training", {"labels": "many"}),
        ("seed", "first"),
        ("machine", "fast"),
        ("settings_format", "first"),
    ],
)
def test_a_part_of_another_kind_is_refused(tmp_path: Path, part: str, value: object):
    file = tmp_path / "results.jsonl"
    write_result(file, MADE)
    changed(file, **{part: value})
    with pytest.raises(DataError, match="must hold what `write_result` writes"):
        read_results(file, resolve)


def test_a_result_of_no_known_kind_is_refused(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    write_result(file, MADE)
    changed(file, kind="ppo")
    with pytest.raises(DataError, match=r"kind \('ppo'\) must be one of train, fit"):
        read_results(file, resolve)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    write_result(file, MADE)
    file.write_text(file.read_text() * 2)
    with pytest.raises(DataError, match=rf"results\.jsonl:2: key \({RUN.key}\) is there twice"):
        read_results(file, resolve)


def test_a_setting_added_later_counts_at_its_default(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    write_result(file, MADE)

    def resolve_today(kind: str, written: Any) -> dict[str, Any]:
        return {"floor": 0.0, **resolve(kind, written)}

    today = plan_runs(expand(study(), {}), resolve_today)
    assert today[0].key != RUN.key
    assert read_results(file, resolve_today) == {today[0].key: MADE}
    assert missing_runs(today, read_results(file, resolve_today)) == today[1:]


@pytest.mark.parametrize("older_key", ["000", "zzz"])
def test_of_two_results_for_one_run_the_one_made_as_today_wins(tmp_path: Path, older_key: str):
    def resolve_today(kind: str, written: Any) -> dict[str, Any]:
        return {"floor": 0.0, **resolve(kind, written)}

    today = plan_runs(expand(study(), {}), resolve_today)[0]
    newer = dataclasses.replace(MADE, key=today.key, config=today.config, seconds=99.0)
    file = tmp_path / "results.jsonl"
    write_result(file, with_key(older_key))
    write_result(file, newer)
    assert read_results(file, resolve_today) == {today.key: newer}


def test_settings_that_are_refused_today_belong_to_no_run(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    write_result(file, MADE)
    assert read_results(file, lambda kind, config: _refuse()) == {RUN.key: MADE}


def test_settings_of_a_newer_version_are_refused(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    write_result(file, MADE)
    changed(file, settings_format=99)
    with pytest.raises(DataError, match=r"results\.jsonl:1: settings_format \(99\) must be from 1"):
        read_results(file, resolve)


def test_a_file_of_another_machine_is_taken_in(tmp_path: Path):
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    other = result(OTHER, harm=0.5)
    write_result(here, MADE)
    for made in (MADE, other):
        write_result(there, made)
    assert take_in(here, there) == 1
    assert read_results(here, resolve) == {RUN.key: MADE, OTHER.key: other}
    assert take_in(here, there) == 0


def test_one_run_with_two_results_is_not_taken_in(tmp_path: Path):
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    write_result(here, MADE)
    write_result(there, result(RUN, harm=0.5))
    with pytest.raises(DataError, match=rf"there\.jsonl: the result of run {RUN.key} differs"):
        take_in(here, there)
    assert read_results(here, resolve) == {RUN.key: MADE}


def test_a_folder_of_an_older_version_is_refused_and_can_be_taken_in(tmp_path: Path):
    folder, file = tmp_path / "results", tmp_path / "results.jsonl"
    folder.mkdir()
    content = MADE.to_json()
    for added in ("commit", "machine", "settings_format"):
        del content[added]
    (folder / f"{RUN.key}.json").write_text(json.dumps(content, indent=1))
    with pytest.raises(DataError, match=r"results\.jsonl in the study and .* --take-in .*results"):
        read_results(folder, resolve)
    assert take_in(file, folder) == 1
    older = dataclasses.replace(MADE, commit=None, machine=None, settings_format=1)
    assert read_results(file, resolve) == {RUN.key: older}


def test_nothing_is_not_taken_in(tmp_path: Path):
    with pytest.raises(DataError, match=r"take-in \(.*nowhere\) must be a file of results"):
        take_in(tmp_path / "results.jsonl", tmp_path / "nowhere")


def test_settings_of_an_older_form_are_carried_by_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was done before there was a choice is not the default of today."""
    file = tmp_path / "results.jsonl"
    write_result(file, MADE)

    def resolve_today(kind: str, written: Any) -> dict[str, Any]:
        return {"keeps": "some", **resolve(kind, written)}

    assert plan_runs(expand(study(), {}), resolve_today)[0].key in read_results(file, resolve_today)
    monkeypatch.setattr(
        packed, "carry", lambda kind, config, since: {**config, "keeps": ("all", kind, since)}
    )
    [key] = read_results(file, resolve_today)
    assert key == packed.run_key(
        MADE.kind, {**RUN.config, "keeps": ("all", MADE.kind, MADE.settings_format)}
    )


def test_a_result_is_found_by_what_its_inputs_held(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    inputs = {"data.prompts": "0" * 32}
    key = packed.run_key(MADE.kind, MADE.config, inputs)
    made = dataclasses.replace(MADE, key=key, inputs=inputs)
    write_result(file, made)
    assert read_results(file, resolve) == {key: made}
    assert key != MADE.key


def test_a_run_is_found_by_the_key_that_its_start_has_today(tmp_path: Path):
    """Keys are in the order of the file, so whichever comes first there."""
    file = tmp_path / "results.jsonl"
    config = study(arms=TREE["arms"] | {"offline": {"kind": "fit", "start": "few"}})
    old = plan(config)[:3]
    for run in old:
        write_result(file, dataclasses.replace(result(run, harm=0.25), inputs=run.inputs))

    def resolve_today(kind: str, written: Any) -> dict[str, Any]:
        return {"floor": 0.0, **resolve(kind, written)}

    today = plan_runs(expand(config, {}), resolve_today)[:3]
    assert {run.key for run in old}.isdisjoint(run.key for run in today)
    assert read_results(file, resolve_today).keys() == {run.key for run in today}


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
