"""Several runs in one table, by hand: t-intervals over seeds, and no run counted twice."""

from pathlib import Path

import pytest

from equilibrate.errors import DataError
from equilibrate.report import pooled_markdown
from tests.unit.report.runs import write_finished


def test_table_by_hand(tmp_path: Path):
    """Harm 2, 4, 6 %: mean 4, standard deviation 2, t(2) = 4.303: 4 +- 4.303 x 2 / sqrt(3)."""
    runs = [write_finished(tmp_path / f"{i}", i, harm) for i, harm in enumerate((0.02, 0.04, 0.06))]
    lines = pooled_markdown(runs).splitlines()
    assert "seeds 0 / 1 / 2" in lines[0]
    assert lines[2] == (
        "| harmful answers, IHD | 90.0 % [90.0, 90.0] | 4.0 % [0.0, 9.0] | 2.0 / 4.0 / 6.0 |"
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
