"""A study through the command line: everything runs, and a killed one goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray
import yaml

from actors import study as carried_out
from equilibrate.study import PlannedRun
from tests.integration import runs

SMOKE = Path("deploy/configs/studies/smoke.yaml")

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


def write_study(folder: Path) -> Path:
    """The smoke study, in folders of this test."""
    tree = yaml.safe_load(SMOKE.read_text())
    tree["seeds"] = [0]
    places = {"output": "output", "stages": "stages", "results": "results.jsonl"}
    tree |= {name: str(folder / place) for name, place in places.items()}
    tree["base"] = {
        kind: [str((SMOKE.parent / file).resolve()) for file in files]
        for kind, files in tree["base"].items()
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def results(folder: Path) -> dict[str, str]:
    """The line of each result."""
    file = folder / "results.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {json.loads(line)["key"]: line for line in lines}


def test_a_killed_study_goes_on_where_it_was(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    log = tmp_path / "study"
    first = runs.command("study", str(study), log=log)
    runs.wait_until(lambda: len(results(tmp_path)) >= 1, first, seconds=400)
    first.kill()
    first.wait()
    before = results(tmp_path)
    assert runs.finish(runs.command("study", str(study), log=log), seconds=500) == 0, (
        log.with_suffix(".log").read_text()
    )
    after = results(tmp_path)
    assert len(after) == 3
    assert {key: after[key] for key in before} == before
    one = json.loads(next(iter(after.values())))
    assert one["machine"]["cores"] >= 1
    assert 0 <= one["aligned"]["malformed"]["mean"] <= 1
    page = (tmp_path / "output" / "study.html").read_text()
    assert "Does every part of a study run?" in page
    summary = (tmp_path / "output" / "study.md").read_text()
    assert "Missing" not in summary
    stages = {path.name.partition("-")[0] for path in (tmp_path / "stages").iterdir()}
    assert {"world", "base", "reward", "cost"} <= stages
    assert not (tmp_path / "output" / "stages").exists()
    # Offline and online runs of a seed start from one base: they look in one place.
    assert len(list((tmp_path / "stages").glob("answers-of-base-*.json"))) == 1
    for run in (tmp_path / "output" / "runs").iterdir():
        assert (run / "stages").resolve() == tmp_path / "stages"  # where `evaluate` looks
    # A third call has nothing to do but to write.
    document = tmp_path / "mine.md"
    again = runs.command("study", str(study), "--document", str(document), log=log)
    assert runs.finish(again, seconds=60) == 0
    assert results(tmp_path) == after
    assert document.read_text().startswith("## Results of `smoke`\n")
    masks = runs.command("study", str(study), "--mask-direction", log=log)
    assert runs.finish(masks, seconds=200) == 0, log.with_suffix(".log").read_text()
    lines = (tmp_path / "output" / "mask_direction.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["arm"], row["place"], row["mask"]) for row in rows] == [
        ("adpo", place, mask) for place in ("start", "end") for mask in ("mask", "random", "halves")
    ]
    assert all(-1 <= row["cosine"] <= 1 for row in rows)


def test_a_mistake_in_an_arm_is_told_before_anything_runs(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    study.write_text(study.read_text().replace("source: cost", "source: costs"))
    log = tmp_path / "study"
    assert runs.finish(runs.command("study", str(study), log=log), seconds=60) == 2
    assert "arms.adpo: ama.source ('costs')" in log.with_suffix(".log").read_text()
    assert not (tmp_path / "output").exists()


def test_a_document_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    study, log = write_study(tmp_path), tmp_path / "study"
    nowhere = tmp_path / "nowhere" / "mine.md"
    asked = runs.command("study", str(study), "--document", str(nowhere), log=log)
    assert runs.finish(asked, seconds=60) == 2
    assert f"document ({nowhere})" in log.with_suffix(".log").read_text()
    assert not (tmp_path / "output").exists()


RUNS = tuple(
    PlannedRun(key=key, kind="train", seed=0, arms=(f"arm {key}",), config={}) for key in "abcd"
)
TASK = carried_out.Task(runs=RUNS, output="out", stages="stages", results="results", commit=None)


@pytest.fixture
def crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of every task is gone."""

    def get(reference: object, timeout: float) -> None:
        raise ray.exceptions.WorkerCrashedError

    monkeypatch.setattr(carried_out.ray, "get", get)


@pytest.mark.parametrize(
    ("finished", "lost", "rest"),
    [("", "a", "bcd"), ("ab", "c", "d"), ("abc", "d", ""), ("abcd", "", "")],
)
def test_a_lost_process_costs_the_run_it_was_at(
    crashed: None, capsys: pytest.CaptureFixture[str], finished: str, lost: str, rest: str
) -> None:
    failures, tasks = carried_out._outcome(None, TASK, dict.fromkeys(finished))
    assert "".join(failures) == lost
    assert [code for _, code in failures.values()] == [1] * len(lost)
    assert "".join(run.key for task in tasks for run in task.runs) == rest
    assert len(tasks) == bool(rest)
    told = capsys.readouterr().out
    assert told.count("failed: arm") == len(lost)
    assert not lost or f"failed: arm {lost} seed 0 ({lost}): " in told
