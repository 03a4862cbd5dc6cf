"""Inputs that are wrong: said before Ray is started."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.faults.scenes import scene
from tests.integration import runs

NOBODY = "127.0.0.1:1"
"""Whoever gets as far as Ray ends otherwise."""


def test_a_reward_folder_without_its_sidecar(tmp_path: Path) -> None:
    settings = runs.write_inputs(tmp_path)
    (tmp_path / "reward" / "equilibrate_score.json").unlink()
    with scene(settings, tmp_path, RAY_ADDRESS=NOBODY) as run:
        said = run.ends(3, within=60)
    assert "reward/equilibrate_score.json: missing" in said
    assert "Traceback" not in said


def test_prompts_that_are_not_there(tmp_path: Path) -> None:
    settings = runs.write_inputs(tmp_path)
    shutil.rmtree(tmp_path / "world" / "prompts")
    with scene(settings, tmp_path, RAY_ADDRESS=NOBODY) as run:
        said = run.ends(3, within=60)
    assert "data.prompts" in said
    assert "does not exist" in said
