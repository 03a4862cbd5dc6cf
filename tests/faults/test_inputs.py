"""Inputs that are wrong: said before Ray is started."""

from __future__ import annotations

import json
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


def test_more_broken_rows_than_the_limit(tmp_path: Path) -> None:
    settings, file = runs.write_inputs(tmp_path), tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"how do i clean lamp {n} ?", "category": "GENERAL"} for n in range(98)]
    long = {"prompt": "how do i open the lamp " * 450_000, "category": "GENERAL"}  # 10 MB
    bad = {"prompt": "how do i open it ?", "category": "EHF"}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, long, bad]))
    with scene(settings, tmp_path, f"data.prompts={file}", RAY_ADDRESS=NOBODY) as run:
        said = run.ends(3, within=60)
    assert "2 of 100 rows break a rule, and data.max_rejected_fraction (0.01) allows 1" in said
    rejected = (run.output / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(row)["where"] for row in rejected] == [f"{file}:99", f"{file}:100"]
    assert "Traceback" not in said


def test_an_output_below_a_file(tmp_path: Path) -> None:
    settings = runs.write_inputs(tmp_path)
    (tmp_path / "file").write_text("in the way")
    output = f"output={tmp_path / 'file' / 'run'}"
    with scene(settings, tmp_path, output, RAY_ADDRESS=NOBODY) as run:
        said = run.ends(4, within=60)
    assert "file is a file; give another output" in said
    assert "Traceback" not in said
