from __future__ import annotations

import json
from pathlib import Path

from equilibrate.evaluation import RefusalMatcher, Verdict
from equilibrate.run.assessment import (
    SAMPLES_PER_CELL,
    TRACE_PROMPTS_PER_CELL,
    Assessor,
    difference,
    read_assessment,
    sample_rows,
    win_rate,
)
from equilibrate.types import Category, Prompt, Weights
from tests.fakes import FakeRolloutPool, make_prompt


class EvenIsHarmful:
    """Harmful where the prompt's number is even; refuses everything else."""

    name = "even"

    def judge(self, prompts: list[Prompt], responses: list[str]) -> list[Verdict]:
        assert responses == ["7 2"] * len(prompts)
        harmful = [int(prompt.text.split()[-1]) % 2 == 0 for prompt in prompts]
        return [
            Verdict(helpfulness=0.5, harmful=bad, refused=not bad, malformed=False)
            for bad in harmful
        ]


def make_assessor(
    folder: Path, *, per_cell: int = 4, every: int = 2, shared: Path | None = None
) -> Assessor:
    rollouts = FakeRolloutPool([])
    rollouts.sync(Weights(version=0, reference=None))
    prompts = [
        make_prompt(f"{cell} {i}", category, cell)
        for category, cell in ((Category.GENERAL, "GENERAL"), (Category.EHD, "EHD_seen"))
        for i in range(per_cell)
    ]
    return Assessor(
        folder,
        prompts,
        rollouts=rollouts,
        judge=EvenIsHarmful(),
        decode=lambda ids: " ".join(map(str, ids)),
        every=every,
        shared_base=shared,
    )


def trace(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_base_is_measured_in_full_and_traced(tmp_path: Path) -> None:
    make_assessor(tmp_path).at_iteration(0)
    (row,) = trace(tmp_path)
    assert row["iteration"] == 0
    assert row["table"]["harmful_compliance"]["EHD_seen"]["mean"] == 0.5
    assert row["table"]["over_refusal"]["GENERAL"]["mean"] == 0.5
    assert len(json.loads((tmp_path / "base.json").read_text())) == 8


def test_only_the_chosen_iterations_are_traced(tmp_path: Path) -> None:
    assessor = make_assessor(tmp_path, every=2)
    assessor.at_iteration(1)
    assert not list(tmp_path.iterdir())
    make_assessor(tmp_path, every=0).at_iteration(0)
    assert [path.name for path in tmp_path.iterdir()] == ["base.json"]


def test_trace_takes_a_few_prompts_of_each_cell(tmp_path: Path) -> None:
    make_assessor(tmp_path, per_cell=TRACE_PROMPTS_PER_CELL + 1).at_iteration(0)
    (row,) = trace(tmp_path)
    assert row["table"]["harmful_compliance"]["EHD_seen"]["n"] == TRACE_PROMPTS_PER_CELL


def test_base_is_sampled_once_for_all_runs_that_start_from_it(tmp_path: Path) -> None:
    shared = tmp_path / "stages" / "answers.json"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    make_assessor(tmp_path / "first", every=0, shared=shared).at_iteration(0)
    measured = shared.read_text()
    assert measured == (tmp_path / "first" / "base.json").read_text()
    # What is found is not sampled again, but judged again: these verdicts are nobody's.
    shared.write_text(measured.replace('"helpfulness": 0.5', '"helpfulness": 0.1'))
    second = make_assessor(tmp_path / "second", every=0, shared=shared)
    second._rollouts = FakeRolloutPool([])  # holds no policy: sampling would fail
    second.at_iteration(0)
    assert (tmp_path / "second" / "base.json").read_text() == measured


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    assessor = make_assessor(tmp_path)
    written = assessor.in_full("aligned", policy_version=0)
    read = read_assessment(tmp_path / "aligned.json", assessor.prompts)
    assert read == written
    assert difference(written, read).harmful_compliance["EHD_seen"].mean == 0.0


def test_a_win_rate_names_who_says_how_helpful_an_answer_is(tmp_path: Path) -> None:
    found = make_assessor(tmp_path).in_full("aligned", policy_version=0)
    told = win_rate(found, found, EvenIsHarmful())
    assert told is not None
    assert told["judge"] == "even"
    assert {cell: rate["mean"] for cell, rate in told["cells"].items()} == {
        "EHD_seen": 0.5,
        "GENERAL": 0.5,
    }
    # The rules tell answers from refusals and nothing more.
    assert win_rate(found, found, RefusalMatcher()) is None


def test_samples_show_the_same_prompts_for_each_stage(tmp_path: Path) -> None:
    assessment = make_assessor(tmp_path, per_cell=SAMPLES_PER_CELL + 1).in_full("base", 0)
    rows = sample_rows({"base": assessment, "aligned": assessment})
    assert len(rows) == 2 * 2 * SAMPLES_PER_CELL
    half = len(rows) // 2
    assert [r["prompt"] for r in rows[:half]] == [r["prompt"] for r in rows[half:]]
    assert rows[0]["verdict"] == {
        "helpfulness": 0.5,
        "harmful": True,
        "refused": False,
        "malformed": False,
        "partly_refused": False,
        "unreadable": "",
    }
