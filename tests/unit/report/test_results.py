from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from equilibrate.evaluation import load_judge
from equilibrate.report.origin import commit
from equilibrate.report.results import (
    TrainingSummary,
    summarise_training,
    write_outcome,
    write_results,
)
from tests.unit.report.runs import CELLS, tables

SUMMARY = TrainingSummary(
    parity_gap_nats_max=2.123456789e-6,
    cost_mean=-0.01234567891,
    multiplier_final=1.5,
    iterations=12,
    kl_final=0.0123456789,
    mixture={"EHD": 0.123456789},
    seconds_by_phase={"rollout": 1.23456, "update": 2.0},
    figures={"kept_fraction": 0.123456789, "final_loss": math.nan},
)


def write(path: Path, *, training: TrainingSummary = SUMMARY, cost_budget: float | None = 0.0):
    base, aligned, difference = tables(4)
    write_results(
        path,
        base=base,
        aligned=aligned,
        difference=difference,
        training=training,
        cost_budget=cost_budget,
        stage_seconds={"base": 10.0},
        judge="oracle",
        versions={"torch": "2.13.0"},
        seed=7,
    )
    return json.loads(path.read_text())


def test_the_contract(tmp_path: Path):
    results = write(tmp_path / "results.json")
    harmful = {cell for cell, category in CELLS.items() if category.is_safety}
    for stage in ("base", "aligned", "difference"):
        assert set(results[stage]["harmful_compliance"]) == harmful
        assert set(results[stage]["over_refusal"]) == {"GENERAL", "BORDERLINE"}
        assert set(results[stage]["helpfulness"]["GENERAL"]) == {"mean", "low", "high", "n"}
    assert results["parity_gap_nats_max"] == 2.12346e-6
    assert results["cost_mean"] == -0.0123457
    assert (results["cost_budget"], results["multiplier_final"]) == (0.0, 1.5)
    assert (results["iterations"], results["kl_final"]) == (12, 0.0123457)
    assert results["mixture"] == {"EHD": 0.123457}
    assert results["seconds_by_phase"] == {"rollout": 1.235, "update": 2.0, "base": 10.0}
    assert (results["versions"], results["seed"]) == ({"torch": "2.13.0"}, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]  # no leftovers


def test_null_where_a_number_does_not_apply(tmp_path: Path):
    nothing = TrainingSummary(
        parity_gap_nats_max=math.nan,
        cost_mean=None,
        multiplier_final=0.0,
        iterations=None,
        kl_final=None,
        mixture={},
        seconds_by_phase={},
        figures={},
    )
    results = write(tmp_path / "results.json", training=nothing, cost_budget=None)
    for name in ("parity_gap_nats_max", "cost_mean", "cost_budget", "multiplier_final"):
        assert results[name] is None


def test_the_summary_by_hand(tmp_path: Path):
    # 22 iterations with costs 0..21: the last 20 are 2..21, their mean is 11.5
    rows = [
        {
            "iteration": i,
            "safety_cost": i,
            "unsafe_fraction": i / 100,
            "unsafe_fraction_all": i / 200,
            "cost": -i,
            "multiplier": 0.5 * i,
            "parity_gap_nats": None if i == 3 else 1e-6 * (i % 7),
            "num_tokens": 100.0,
            "kept_fraction": 0.5 if i else 1.0,
            "kl": 0.1 * i if i < 21 else None,
            "mixture_EHD": i / 100,
        }
        for i in range(22)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    timings = [{"iteration": i, "seconds": {"rollout": 0.5, "iteration": 1.0}} for i in range(4)]
    (tmp_path / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timings))
    summary = summarise_training(tmp_path)
    assert summary.cost_mean == 11.5
    assert summary.unsafe_share == pytest.approx(0.115)
    assert summary.multiplier_final == 10.5
    # The last update has no KL: that of the one before counts.
    assert (summary.iterations, summary.kl_final) == (22, 2.0)
    assert summary.mixture == {"EHD": 0.21}
    assert summary.parity_gap_nats_max == pytest.approx(6e-6)
    assert summary.seconds_by_phase == {"rollout": 2.0, "iteration": 4.0}
    # 100 tokens of the first iteration and 50 of each of the other 21, of 2,200
    assert summary.figures == {"trained_tokens": 1150.0, "kept_fraction": 1150 / 2200}
    assert summarise_training(tmp_path, scope="all").cost_mean == -11.5
    assert summarise_training(tmp_path, scope="all").unsafe_share == pytest.approx(0.0575)


def test_a_run_without_rows_has_an_empty_summary(tmp_path: Path):
    assert summarise_training(tmp_path) == TrainingSummary(
        parity_gap_nats_max=None,
        cost_mean=None,
        multiplier_final=None,
        iterations=None,
        kl_final=None,
        mixture={},
        seconds_by_phase={},
        figures={},
    )


def git(tree: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(tree), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_named_and_marked_where_the_code_differs(tmp_path: Path):
    code, notes = tmp_path / "equilibrate" / "code.py", tmp_path / "notes.md"
    code.parent.mkdir()
    for file in (code, notes):
        file.write_text("one\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "First")
    head = git(tmp_path, "rev-parse", "HEAD")
    notes.write_text("two\n")  # what is not code gives no other numbers
    assert commit(tmp_path) == head
    code.write_text("two\n")
    assert commit(tmp_path) == f"{head}+"


def test_a_folder_that_is_no_checkout_has_no_commit(tmp_path: Path):
    assert commit(tmp_path) is None


def test_of_a_combined_judge_the_agreement_of_each_part_is_kept(tmp_path: Path):
    measured = {"options": {}, "file": "f", "n": 2, "kappa": None, "look_alikes": None, "fit": None}
    for verdict, name in (("refused", "refusal rules"), ("harmful", "refusal rules")):
        told = measured | {"judge": "refusals", "judge_name": name, "verdict": verdict}
        (tmp_path / verdict).write_text(json.dumps(told))
    files = tuple(str(tmp_path / verdict) for verdict in ("refused", "harmful"))
    config = SimpleNamespace(
        judge=SimpleNamespace(agreement=files), seed=0, data=SimpleNamespace(policy="")
    )
    write_outcome(
        config,
        tmp_path,
        (),
        load_judge("combined", harm={"name": "oracle"}),
        training=summarise_training(tmp_path),
        cost_budget=None,
    )
    kept = json.loads((tmp_path / "results.json").read_text())["judge_agreement"]
    # Of the rules only the refusals count here, not their harm.
    assert [one["verdict"] for one in kept] == ["refused"]
