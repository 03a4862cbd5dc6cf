from __future__ import annotations

from pathlib import Path

import pytest

from equilibrate.run.stages import Stage, run_stage


def make_stage(calls: list[str], *, steps: int = 10, fail: bool = False) -> Stage:
    def make(folder: Path) -> None:
        calls.append("made")
        (folder / "model").write_text("half")
        if fail:
            raise KeyboardInterrupt
        (folder / "model").write_text("whole")

    return Stage(name="base", inputs={"steps": steps}, make=make)


def test_second_call_finds_the_first(tmp_path: Path) -> None:
    calls: list[str] = []
    first = run_stage(make_stage(calls), tmp_path)
    assert run_stage(make_stage(calls), tmp_path) == first
    assert calls == ["made"]
    assert (first / "model").read_text() == "whole"


def test_other_inputs_make_another_folder(tmp_path: Path) -> None:
    calls: list[str] = []
    folders = {run_stage(make_stage(calls, steps=n), tmp_path) for n in (10, 20, 10)}
    assert len(folders) == len(calls) == 2


def test_key_follows_inputs_and_not_their_order() -> None:
    one = Stage(name="base", inputs={"a": 1, "b": 2}, make=lambda _: None)
    same = Stage(name="base", inputs={"b": 2, "a": 1}, make=lambda _: None)
    other = Stage(name="cost", inputs={"a": 1, "b": 2}, make=lambda _: None)
    assert one.key == same.key != other.key


def test_interrupted_stage_is_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_stage(make_stage(calls, fail=True), tmp_path)
    assert not make_stage(calls).is_made(tmp_path)
    folder = run_stage(make_stage(calls), tmp_path)
    assert (folder / "model").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_unsealed_folder_is_no_result(tmp_path: Path) -> None:
    calls: list[str] = []
    stage = make_stage(calls)
    stage.folder(tmp_path).mkdir()
    run_stage(stage, tmp_path)
    assert calls == ["made"]
