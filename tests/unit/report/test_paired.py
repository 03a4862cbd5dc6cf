"""Two settings over the same seeds, by hand."""

from pathlib import Path

import pytest

from equilibrate.errors import DataError
from equilibrate.report import paired_markdown
from tests.unit.report.runs import write_finished


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
