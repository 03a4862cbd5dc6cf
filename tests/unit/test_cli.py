from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from equilibrate import cli
from equilibrate.errors import DataError, NumericsError, ResourceError

WORLD = "deploy/configs/sandbox.yaml"


def test_validate_prints_what_it_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("ppo: {clip_range: 0.1}\n")
    assert cli.main(["validate", "--config", WORLD, "--config", str(file), "ama=off"]) == 0
    printed = capsys.readouterr().out
    assert "clip_range: 0.1" in printed
    assert "ama: null" in printed


def test_validate_knows_the_settings_of_a_fit(capsys: pytest.CaptureFixture[str]) -> None:
    of_fit = ("validate", "--kind", "fit", "--config", "deploy/configs/fit.yaml")
    assert cli.main([*of_fit, "objective.type=sft"]) == 0
    assert "type: sft" in capsys.readouterr().out
    assert cli.main([*of_fit, "objective.type=stf"]) == 2
    assert "objective.type" in capsys.readouterr().err


def test_bad_setting_is_named_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "ppo.clip_rnage=0.1"]) == 2
    assert "did you mean 'clip_range'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(DataError("x"), 3), (ResourceError("x"), 4), (NumericsError("x"), 5)]
)
def test_exit_code_of_each_error(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("equilibrate.report.write_report", fail)
    assert cli.main(["report", "somewhere"]) == code


def test_a_file_that_cannot_be_used_is_named_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise PermissionError(13, "Permission denied", "somewhere/report.html")

    monkeypatch.setattr("equilibrate.report.write_report", fail)
    assert cli.main(["report", "somewhere"]) == 4
    told = capsys.readouterr().err
    assert told == "error: somewhere/report.html: cannot be used (Permission denied)\n"


def test_unknown_command_exits_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "equilibrate", "trian"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "train" in done.stdout + done.stderr


def test_library_without_its_siblings_says_where_to_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["train"]) == 2
    assert "source tree" in capsys.readouterr().err
