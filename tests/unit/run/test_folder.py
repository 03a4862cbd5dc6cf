"""The door to a run's folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from equilibrate import cli
from equilibrate.config.files import load_run_config, parse_config, parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.formats import SETTINGS_FORMAT
from equilibrate.config.inputs import plain
from equilibrate.errors import ConfigError, DataError, ResourceError
from equilibrate.run.disk import require_writable
from equilibrate.run.folder import measured, own_run_folder, read_fitting, stage_seconds
from equilibrate.text.renderer import Renderer


def test_a_folder_is_claimed_and_let_go(tmp_path: Path) -> None:
    config = parse_config({"output": str(tmp_path / "new" / "run")})
    with own_run_folder(config) as run:
        assert run == tmp_path / "new" / "run"
        assert (run / "config.yaml").is_file()
        with pytest.raises(ResourceError, match="in use by process"), own_run_folder(config):
            pass
    with own_run_folder(config) as again:
        assert again == run


@pytest.mark.parametrize("path", ["file", "file/run"])
def test_an_output_that_cannot_be_made_is_refused_at_the_door(
    tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    output = tmp_path / path
    message = f"{output}: cannot be made: {tmp_path / 'file'} is a file; give another output"
    with (
        pytest.raises(ResourceError) as caught,
        own_run_folder(parse_config({"output": str(output)})),
    ):
        pass
    assert str(caught.value) == message
    assert cli.main(["validate", f"output={output}"]) == 4
    assert message in capsys.readouterr().err


def test_a_read_only_output_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ResourceError, match=f"x/y: cannot be written: {tmp_path} is closed to"):
        require_writable(tmp_path / "x" / "y")
    (tmp_path / "x").mkdir()
    require_writable(tmp_path / "x" / "y")
    assert not (tmp_path / "x" / "y").exists()


def test_seconds_of_a_phase_add_up_over_attempts(tmp_path: Path) -> None:
    for phase in ("prepare", "prepare", "finish"):
        with measured(tmp_path, phase):
            pass
    seconds = stage_seconds(tmp_path)
    assert list(seconds) == ["prepare", "finish"]
    assert all(value >= 0 for value in seconds.values())


def finish(run: Path, *, is_finished: bool = True) -> None:
    """What a run leaves that the door looks at."""
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "LATEST").write_text("iteration-50")
    if is_finished:
        (run / "report.html").touch()


def holds(settings: dict[str, Any]) -> bool:
    """Whether the folder already holds this run."""
    with own_run_folder(parse_config(settings)) as run:
        return run is None


def test_a_finished_run_is_done_whatever_says_how_it_was_carried_out(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"output": str(tmp_path)}
    assert not holds(settings)
    finish(tmp_path)
    assert holds(settings)
    assert holds(settings | {"timeout_seconds": 5, "learner": {"cpus": 3}})
    assert (tmp_path / "report.html").is_file()
    assert not holds(settings | {"iterations": 300})  # prolonged
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("is_finished", [True, False])
def test_settings_that_a_run_cannot_go_on_with_are_refused_before_anything_changes(
    is_finished: bool, tmp_path: Path
) -> None:
    assert not holds({"output": str(tmp_path)})
    finish(tmp_path, is_finished=is_finished)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(
        ConfigError, match=r"^seed \(1\) must stay what it was .* started \(0\); set"
    ):
        holds({"output": str(tmp_path), "seed": 1})
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert (tmp_path / "report.html").exists() is is_finished


def test_a_run_of_another_kind_or_format_is_refused(tmp_path: Path) -> None:
    assert not holds({"output": str(tmp_path)})
    other = parse_settings(FitConfig, {"output": str(tmp_path), "fdc": {"amounts": {"EHD": 1}}})
    with pytest.raises(ConfigError, match="holds a run of another kind"), own_run_folder(other):
        pass
    written = (tmp_path / "config.yaml").read_text()
    number = f"settings_format: {SETTINGS_FORMAT}\n"
    (tmp_path / "config.yaml").write_text(written.replace(number, ""))
    with pytest.raises(ConfigError, match=r"config\.yaml: settings_format \(1\): must be"):
        holds({"output": str(tmp_path)})
    assert number in written
    (tmp_path / "config.yaml").write_text(written)
    assert load_run_config(tmp_path) == parse_config({"output": str(tmp_path)})


def test_other_content_at_the_same_place_is_another_run(tmp_path: Path) -> None:
    data = {key: str(tmp_path / key) for key in ("policy", "reward", "cost", "prompts")}
    for path in data.values():
        Path(path).write_text("{}")
    settings: dict[str, Any] = {"output": str(tmp_path / "run"), "data": data}
    assert not holds(settings)
    finish(tmp_path / "run")
    assert holds(settings)
    Path(data["reward"]).rename(tmp_path / "moved")
    moved = settings | {"data": data | {"reward": str(tmp_path / "moved")}}
    assert holds(moved)
    Path(data["prompts"]).write_text('{"prompt": "new"}')
    assert not holds(moved)
    Path(data["prompts"]).unlink()
    with pytest.raises(DataError, match=r"data\.prompts \('.*prompts'\) does not exist; give an"):
        holds(moved)


class OneIdPerCharacter:
    """In the place of a `Renderer`."""

    def prompt_ids(self, text: str) -> list[int]:
        return list(range(len(text)))


def test_rejected_prompts_are_listed_in_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "prompts.jsonl", tmp_path / "run"
    rows = [{"prompt": f"prompt {i}", "category": "GENERAL"} for i in range(199)]
    rows.append({"prompt": None, "category": "GENERAL"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config({"output": str(run)})
    renderer = cast(Renderer, OneIdPerCharacter())
    assert len(read_fitting(plain(file), renderer, config, run)) == 199
    [entry] = map(json.loads, (run / "rejected.jsonl").read_text().splitlines())
    assert (entry["where"], entry["rule"]) == (f"{file}:200", "prompt (None) must be a string")
    said = capsys.readouterr().out
    recognised, left_out = said.splitlines()
    assert recognised.startswith("prompts.jsonl: prompts: columns prompt; ")
    assert left_out == f"prompts.jsonl: 1 rows rejected, see {run / 'rejected.jsonl'}"
    strict = parse_config({"output": str(run), "data": {"max_rejected_fraction": 0.0}})
    with pytest.raises(DataError, match=r"prompts\.jsonl:200: prompt \(None\).*\n1 of 200 rows"):
        read_fitting(plain(file), renderer, strict, run)
