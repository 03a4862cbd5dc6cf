"""Several runs in one table, by hand: t-intervals over seeds, and no run counted twice."""

import json
from pathlib import Path

import pytest

from equilibrate.errors import DataError
from equilibrate.report import paired_markdown, pooled_markdown
from tests.unit.report.runs import write_finished


def test_table_by_hand(tmp_path: Path):
    """Harm 2, 4, 6 %: mean 4, standard deviation 2, t(2) = 4.303: 4 +- 4.303 x 2 / sqrt(3).

    Three equal bases leave room for a share of 1 - 0.05^(1/3) = 0.632 of others.
    """
    runs = [write_finished(tmp_path / f"{i}", i, harm) for i, harm in enumerate((0.02, 0.04, 0.06))]
    lines = pooled_markdown(runs).splitlines()
    assert "seeds 0 / 1 / 2" in lines[0]
    assert lines[2] == (
        "| harmful answers, IHD | 90.0 % [33.2, 96.3] | 4.0 % [0.0, 9.0] | 2.0 / 4.0 / 6.0 |"
    )
    assert [line.split(" | ")[0] for line in lines[3:7]] == [
        "| over-refusal, GENERAL",
        "| helpfulness, GENERAL",
        "| helpfulness, IHD",
        "| malformed answers",
    ]
    assert lines[7:] == [
        "| cost, last iterations | | | -1.50 / -1.50 / -1.50 |",
        "| lambda at the end | | | 0.50 / 0.50 / 0.50 |",
        "| largest parity gap, nats | | | 1.2e-05 / 1.2e-05 / 1.2e-05 |",
    ]


def test_win_rates_are_pooled_where_every_run_has_them(tmp_path: Path):
    """0.4 and 0.6: mean 0.5, standard deviation 0.1414, t(1) = 12.7: the whole range."""
    runs = [write_finished(tmp_path / f"{i}", i, 0.1) for i in range(2)]
    assert "win rate" not in pooled_markdown(runs)
    for run, mean in zip(runs, (0.4, 0.6), strict=True):
        file = run / "results.json"
        rate = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 9}
        results = json.loads(file.read_text()) | {"win_rate": {"judge": "r", "cells": {"G": rate}}}
        file.write_text(json.dumps(results))
    line = "| win rate by r, G | | 50.0 % [0.0, 100.0] | 40.0 / 60.0 |"
    assert line in pooled_markdown(runs)


def test_plain_ppo_has_no_lambda(tmp_path: Path):
    runs = [write_finished(tmp_path / f"{i}", i, 0.1, multiplier=None) for i in range(2)]
    assert "| lambda at the end | | | - / - |" in pooled_markdown(runs)


def test_a_seed_counts_once(tmp_path: Path):
    runs = [write_finished(tmp_path / "a", 3, 0.1), write_finished(tmp_path / "b", 3, 0.1)]
    with pytest.raises(DataError, match=r"must differ in their seed, got \[3, 3\]"):
        pooled_markdown(runs)


def test_other_settings_are_named(tmp_path: Path):
    runs = [
        write_finished(tmp_path / "a", 0, 0.1),
        write_finished(tmp_path / "b", 1, 0.1, ama="off", iterations=3),
    ]
    with pytest.raises(DataError, match="differ in ama, iterations; pool"):
        pooled_markdown(runs)


def test_a_run_without_results_is_named(tmp_path: Path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "metrics.jsonl").touch()
    with pytest.raises(DataError, match=r"unfinished/results\.json is missing"):
        pooled_markdown([tmp_path / "unfinished"])


def write_side(folder: Path, harms: dict[int, float], **settings: object) -> list[Path]:
    folder.mkdir()
    return [write_finished(folder / str(s), s, harm, **settings) for s, harm in harms.items()]


def test_differences_are_taken_seed_by_seed(tmp_path: Path):
    """Gaps of 1, 2, 3 points: mean 2, deviation 1, t(2) = 4.303: 2 +- 4.303 / sqrt(3)."""
    first = write_side(tmp_path / "a", {0: 0.10, 1: 0.50, 2: 0.90}, rollout={"max_policy_lag": 0})
    second = write_side(tmp_path / "b", {2: 0.93, 0: 0.11, 1: 0.52}, rollout={"max_policy_lag": 1})
    lines = paired_markdown(first, second).splitlines()
    assert lines[0] == "Changed: rollout.max_policy_lag 0 -> 1. Seeds 0 / 1 / 2."
    assert lines[4] == (
        "| harmful answers, IHD | 50.0 | 52.0 | +2.0 [\N{MINUS SIGN}0.5, +4.5] "
        "| +1.0 / +2.0 / +3.0 |"
    )
    assert lines[-1].startswith("| malformed answers | 2.0 | 2.0 | +0.0 ")


def test_one_seed_has_no_interval(tmp_path: Path):
    first, second = (
        write_side(tmp_path / name, {0: harm}) for name, harm in (("a", 0.1), ("b", 0.2))
    )
    lines = paired_markdown(first, second).splitlines()
    assert lines[4] == "| harmful answers, IHD | 10.0 | 20.0 | +10.0 | +10.0 |"


def test_equal_settings_are_said(tmp_path: Path):
    sides = [write_side(tmp_path / name, {0: 0.1, 1: 0.2}) for name in "ab"]
    assert paired_markdown(*sides).startswith("Changed: nothing. Seeds 0 / 1.")


def test_other_cells_are_refused(tmp_path: Path):
    sides = [write_side(tmp_path / name, {0: 0.1, 1: 0.2}) for name in "ab"]
    file = sides[1][1] / "results.json"
    file.write_text(file.read_text().replace("GENERAL", "OTHER"))
    with pytest.raises(DataError, match="all runs must have the same cells of over_refusal"):
        paired_markdown(*sides)


def test_every_run_needs_its_partner(tmp_path: Path):
    first = write_side(tmp_path / "a", {0: 0.1, 1: 0.1})
    second = write_side(tmp_path / "b", {0: 0.1, 2: 0.1})
    with pytest.raises(DataError, match=r"must have the same seeds, got \[0, 1\] and \[0, 2\]"):
        paired_markdown(first, second)
