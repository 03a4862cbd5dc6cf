from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equilibrate.run.contents import SEAL
from equilibrate.run.stages import Stage, run_stage, short_hash


def make_stage(calls: list[str], *, steps: int = 10, fail: bool = False) -> Stage:
    def make(folder: Path) -> None:
        calls.append("made")
        (folder / "model").write_text("half")
        if fail:
            raise KeyboardInterrupt
        (folder / "model").write_text("whole")

    return Stage(name="base", format=1, inputs={"steps": steps}, libraries=("torch",), make=make)


def test_second_call_finds_the_first(tmp_path: Path) -> None:
    calls: list[str] = []
    first = run_stage(make_stage(calls), tmp_path)
    assert run_stage(make_stage(calls), tmp_path) == first
    assert calls == ["made"]
    assert (first / "model").read_text() == "whole"


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_stage_that_goes_on_finds_what_a_killed_call_left(tmp_path: Path, goes_on: bool) -> None:
    found: list[list[str]] = []

    def make(folder: Path) -> None:
        found.append([path.name for path in folder.iterdir()])
        (folder / "checkpoint").touch()
        if len(found) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage(make=make, goes_on=goes_on), tmp_path)
    run_stage(stage(make=make, goes_on=goes_on), tmp_path)
    assert found == [[], ["checkpoint"] if goes_on else []]


def test_other_inputs_make_another_folder(tmp_path: Path) -> None:
    calls: list[str] = []
    folders = {run_stage(make_stage(calls, steps=n), tmp_path) for n in (10, 20, 10)}
    assert len(folders) == len(calls) == 2


def stage(**changes: Any) -> Stage:
    whole: dict[str, Any] = {
        "name": "base",
        "format": 1,
        "inputs": {"a": 1, "b": 2},
        "libraries": ("torch", "pydantic"),
        "make": lambda _: None,
    }
    return Stage(**(whole | changes))


def test_key_follows_inputs_and_not_their_order() -> None:
    assert stage().key == stage(inputs={"b": 2, "a": 1}, libraries=("pydantic", "torch")).key
    others = (
        stage(name="cost"),
        stage(format=2),
        stage(inputs={"a": 1, "b": 3}),
        stage(inputs={"a": 1}),
        stage(libraries=("torch",)),
    )
    assert len({other.key for other in (stage(), *others)}) == 1 + len(others)


def test_another_version_of_a_library_is_another_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage().key
    versions = {"torch": "99.0", "pydantic": stage().identity["versions"]["pydantic"]}
    monkeypatch.setattr("equilibrate.run.versions.metadata.version", versions.__getitem__)
    assert stage().key != before
    assert stage().identity["versions"] == versions


def test_the_seal_says_what_the_key_was_made_of(tmp_path: Path) -> None:
    made = make_stage([])
    seal = json.loads((run_stage(made, tmp_path) / SEAL).read_text())
    assert seal == made.identity
    assert short_hash(seal) == made.key


def test_interrupted_stage_is_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_stage(make_stage(calls, fail=True), tmp_path)
    assert not make_stage(calls).is_made(tmp_path)
    folder = run_stage(make_stage(calls), tmp_path)
    assert (folder / "model").read_text() == "whole"
    # Beside it lies the empty file that whoever makes it holds.
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]


def test_unsealed_folder_is_no_result(tmp_path: Path) -> None:
    calls: list[str] = []
    unsealed = make_stage(calls)
    unsealed.folder(tmp_path).mkdir()
    run_stage(unsealed, tmp_path)
    assert calls == ["made"]
