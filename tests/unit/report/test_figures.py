from __future__ import annotations

import json
from pathlib import Path

import pytest

from equilibrate.report.figures import all_figures, split_seconds
from equilibrate.report.inputs import read_run
from tests.unit.report.runs import tables, write_run


def test_split_seconds_adds_up():
    # 10 in all, 3 + 4 claimed by phases; `base` is a stage of its own and no part of an iteration
    split = split_seconds({"rollout": 3.0, "update": 4.0, "iteration": 10.0, "base": 50.0})
    assert split == {"rollout": 3.0, "update": 4.0, "base": 50.0, "other": 3.0}
    assert split_seconds({})["other"] == 0.0
    # Clocks that overlap by rounding leave nothing, not less than nothing.
    assert split_seconds({"rollout": 1.0, "iteration": 0.999})["other"] == 0.0


def test_only_the_last_table_of_an_iteration_counts(tmp_path: Path):
    base, aligned, _ = tables(4)
    rows = [
        {"iteration": 20, "table": base.to_json()},
        {"iteration": 0, "table": base.to_json()},
        {"iteration": 20, "table": aligned.to_json()},
    ]
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    figure = all_figures(read_run(tmp_path))["harm_refusal"]
    checkpoints = next(trace for trace in figure["data"] if trace["name"] == "checkpoints")
    assert checkpoints["text"] == ["iteration 0", "iteration 20"]
    assert checkpoints["x"] == pytest.approx([base.mean_harm, aligned.mean_harm], abs=1e-6)


def test_the_ends_are_marked_and_the_budget_is_drawn(tmp_path: Path):
    figures = all_figures(read_run(write_run(tmp_path, per_cell=4)))
    names = [trace["name"] for trace in figures["harm_helpfulness"]["data"]]
    assert names == ["not beaten", "checkpoints", "base", "aligned"]
    budget = figures["cost"]["data"][-1]
    assert (budget["name"], budget["y"]) == ("budget 0", [0.0, 0.0])


def test_the_constrained_cost_follows_the_scope(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0, "cost": 1.0, "safety_cost": 2.0}\n')
    assert all_figures(read_run(tmp_path))["cost"]["data"][0]["y"] == [2.0]
    (tmp_path / "config.yaml").write_text("constraint: {scope: all, budget: 0.5}\n")
    figure = all_figures(read_run(tmp_path))["cost"]
    assert [trace["y"] for trace in figure["data"]] == [[1.0], [0.5, 0.5]]
    (tmp_path / "config.yaml").write_text("constraint: null\n")
    assert len(all_figures(read_run(tmp_path))["cost"]["data"]) == 1


def test_a_bounded_share_is_drawn_with_its_bound(tmp_path: Path):
    row = '{"iteration": 0, "unsafe_fraction_EHD": 0.5, "unsafe_fraction": 0.25, "cost": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(row)
    assert len(all_figures(read_run(tmp_path))["unsafe"]["data"]) == 1
    (tmp_path / "config.yaml").write_text("constraint: {budget: null, max_unsafe_share: 0.05}\n")
    traces = all_figures(read_run(tmp_path))["unsafe"]["data"]
    assert [trace["y"] for trace in traces] == [[0.5], [0.25], [0.05, 0.05]]
    assert traces[-1]["name"] == "at most 0.05"


def test_nothing_recorded_draws_nothing(tmp_path: Path):
    (tmp_path / "metrics.jsonl").touch()
    assert set(all_figures(read_run(tmp_path)).values()) == {None}


def test_less_refusal_is_better_and_more_help_is_better(tmp_path: Path):
    def table(harm: float, refusal: float, helpfulness: float) -> dict:
        def figure(mean: float) -> dict:
            return {"mean": mean, "low": 0.0, "high": 1.0, "n": 4}

        return {
            "harmful_compliance": {"IHD": figure(harm)},
            "over_refusal": {"GENERAL": figure(refusal)},
            "helpfulness": {"GENERAL": figure(helpfulness)},
            "malformed": figure(0.0),
        }

    # Aligned pays for less harm with refusals, and is more helpful all the same.
    results = {"base": table(0.9, 0.0, 0.5), "aligned": table(0.1, 0.2, 0.6)}
    (tmp_path / "results.json").write_text(json.dumps(results))
    figures = all_figures(read_run(tmp_path))
    assert figures["harm_refusal"]["data"][0]["x"] == [0.1, 0.9]  # neither beats the other
    assert figures["harm_helpfulness"]["data"][0]["x"] == [0.1]  # aligned beats base
