"""The door to a run's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from equilibrate import cli
from equilibrate.config.files import parse_config
from equilibrate.errors import ResourceError
from equilibrate.run.disk import require_writable
from equilibrate.run.folder import claimed, measured, stage_seconds


def test_a_folder_is_claimed_and_let_go(tmp_path: Path) -> None:
    config = parse_config({"output": str(tmp_path / "new" / "run")})
    with claimed(config) as run:
        assert run == tmp_path / "new" / "run"
        assert (run / "config.yaml").is_file()
        with pytest.raises(ResourceError, match="in use by process"), claimed(config):
            pass
    with claimed(config) as again:
        assert again == run


@pytest.mark.parametrize("path", ["file", "file/run"])
def test_an_output_that_cannot_be_made_is_refused_at_the_door(
    tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    output = tmp_path / path
    message = f"{output}: cannot be made: {tmp_path / 'file'} is a file; give another output"
    with pytest.raises(ResourceError) as caught, claimed(parse_config({"output": str(output)})):
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
