from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate import cli
from equilibrate.errors import DataError
from equilibrate.fdc.audit import advise, balance, read_saturation, sample_rows, scale
from equilibrate.fdc.label import Row
from equilibrate.types import Category

EHD, IHD, MHD, GENERAL = Category.EHD, Category.IHD, Category.MHD, Category.GENERAL


def row(text: str, category: Category | None) -> Row:
    content = {"prompt": text} | ({"category": category.value} if category else {})
    return Row(
        where="f:1", content=content, prompt=text, text=text, given=category, fits_none=False
    )


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_balance_counts_classes_copies_and_conflicts() -> None:
    rows = [row("a", EHD), row("a", EHD), row("a", IHD), row("b", IHD), row("c", None)]
    found = balance(rows)
    assert (found.counts[EHD], found.counts[IHD], found.counts[MHD]) == (2, 2, 0)
    assert (found.without_class, found.conflicts, found.copies) == (1, 1, 1)
    # Two classes of equal size.
    assert found.effective_classes == pytest.approx(2)
    assert balance([row("c", None)]).effective_classes == 0


def test_the_papers_own_general_set_calls_for_the_papers_counts() -> None:
    # 260k general: 1:30 to 1:20 is 8667 to 13000, 1:200 to 1:100 is 1300 to 2600.
    ehd, ihd, mhd = advise({EHD: 10_000, IHD: 3_000, MHD: 1_000}, 260_000)
    assert (ehd.low, ehd.high, ehd.change) == (8667, 13_000, 0)
    # 1:100 to 1:50 would be 2600 to 5200: intent saturates at 3000.
    assert (ihd.low, ihd.high, ihd.change) == (2600, 3000, 0)
    assert "3000, where intent is learned" in ihd.reason
    assert (mhd.low, mhd.high, mhd.change) == (1300, 2600, 300)
    assert advise({EHD: 100}, 1000)[0].change == -50


def test_a_general_set_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"general \(0\) must be above 0"):
        advise({}, 0)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.9, 0.9, 0.5, 0.5, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1], "still learning"),
        ([0.9, 0.9, 0.5, 0.5, 0.3, 0.3, 0.11, 0.11, 0.1, 0.1], "saturated"),
        ([0.9, 0.9, 0.1, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], "worse than it was"),
    ],
)
def test_saturation_by_hand(tmp_path: Path, values: list[float], verdict: str) -> None:
    # Fifths of ten iterations are two each. IHD has too few iterations, and null is no number.
    rows: list[dict[str, object]] = [
        {"iteration": i, "unsafe_fraction_EHD": v, "unsafe_fraction_IHD": None}
        for i, v in enumerate(values)
    ]
    found = read_saturation(write(tmp_path / "metrics.jsonl", rows))
    assert list(found) == [EHD]
    assert found[EHD].verdict == verdict
    assert found[EHD].last == pytest.approx(values[-1])
    [ehd, *_] = advise({EHD: 50}, 1000, found)
    assert verdict in ehd.reason
    assert ("retrieved notes" in ehd.reason) == (verdict == "saturated")


def test_metrics_without_classes_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "metrics.jsonl", [{"reward": 1.0}] * 20)
    with pytest.raises(DataError, match="at least 10 iterations"):
        read_saturation(file)


def test_scale_gives_the_largest_remainders_the_rest() -> None:
    # 14 parts of 15: 10.71, 3.21, 1.07, so EHD is rounded up.
    assert scale({EHD: 10, IHD: 3, MHD: 1}, 15) == {EHD: 11, IHD: 3, MHD: 1}


@given(
    st.dictionaries(st.sampled_from(list(Category)), st.integers(1, 10_000), min_size=1),
    st.integers(1, 10_000),
)
def test_scale_sums_to_the_total_and_stays_within_one(
    ratio: dict[Category, int], total: int
) -> None:
    amounts = scale(ratio, total)
    assert sum(amounts.values()) == total
    weight = sum(ratio.values())
    for category, amount in amounts.items():
        assert abs(amount - total * ratio[category] / weight) < 1 + 1e-9


@given(st.integers(0, 3), st.integers(0, 3), st.integers())
def test_samples_keep_the_order_and_the_counts(num_ehd: int, num_ihd: int, seed: int) -> None:
    rows = [row(f"p{i}", EHD if i % 2 else IHD) for i in range(6)] + [row("x", None)]
    amounts = {EHD: num_ehd, IHD: num_ihd}
    chosen = sample_rows(rows, amounts, oversample=False, seed=seed)
    assert [r.given for r in chosen].count(EHD) == num_ehd
    assert len(chosen) == num_ehd + num_ihd
    places = [rows.index(r) for r in chosen]
    assert places == sorted(places)
    assert chosen == sample_rows(rows, amounts, oversample=False, seed=seed)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"p{i}", "category": "EHD" if i < 6 else "GENERAL", "more": i} for i in range(12)
    ]
    file = str(write(tmp_path / "p.jsonl", rows))
    out = tmp_path / "made" / "s.jsonl"
    assert cli.main(["fdc", "sample", file, "--out", str(out), "--amounts", "EHD=2"]) == 0
    chosen = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(chosen) == 2
    assert all(item in rows for item in chosen)
    mixture = json.loads(out.with_suffix(".mixture.json").read_text())
    assert mixture["counts"]["EHD"] == mixture["different_prompts"] == 2
    assert cli.main(["fdc", "sample", file, "--out", str(out)]) == 3
    assert "EHD (10000) must be at most the 6" in capsys.readouterr().err
    for bad in ("EHD=x", "EHD", "EDH=1"):
        assert cli.main(["fdc", "sample", file, "--out", str(out), "--amounts", bad]) == 2
    found = tmp_path / "audit.json"
    assert cli.main(["fdc", "audit", file, "--general", "3000", "--out", str(found)]) == 0
    printed = capsys.readouterr().out
    # 3000 general: 1:30 is 100, 1:20 is 150.
    assert "EHD: 100 to 150, have 6 (+94)" in printed
    assert math.isclose(json.loads(found.read_text())["effective_classes"], 2)


def test_audit_of_a_run_and_without_general_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{"prompt": "a", "category": "EHD"}, {"prompt": "b"}]
    file = str(write(tmp_path / "p.jsonl", rows))
    write(tmp_path / "metrics.jsonl", [{"unsafe_fraction_EHD": 0.5}] * 10)
    assert cli.main(["fdc", "audit", file, "--run", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "EHD over 10 iterations: 50% unsafe, then 50%, now 50%: saturated" in printed
    assert "without class: 1" in printed
    assert "give --general N" in printed
    broken = tmp_path / "broken.jsonl"
    broken.write_text("[1]\n")
    assert cli.main(["fdc", "audit", file, "--run", str(broken)]) == 3
    assert "broken.jsonl:1: must be the metrics" in capsys.readouterr().err


def test_sample_by_a_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"p{i}", "category": "EHD"} for i in range(3)]
    file, out = str(write(tmp_path / "p.jsonl", rows)), str(tmp_path / "s.jsonl")
    arguments = ["fdc", "sample", file, "--out", out, "--amounts", "EHD=1", "--total"]
    assert cli.main([*arguments, "2"]) == 0
    assert "EHD               2  100.0%" in capsys.readouterr().out
    assert cli.main([*arguments, "-1"]) == 2
    assert cli.main([*arguments, "5", "--when-short", "oversample"]) == 0
    mixture = json.loads((tmp_path / "s.mixture.json").read_text())
    assert (mixture["counts"]["EHD"], mixture["different_prompts"]) == (5, 3)
