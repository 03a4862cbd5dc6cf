from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from equilibrate.errors import DataError
from equilibrate.evaluation.judges import Verdict
from equilibrate.evaluation.statistics import (
    Estimate,
    mean_interval,
    paired_rate_difference,
    wilson_interval,
)
from equilibrate.evaluation.tables import (
    EvaluationTable,
    compare,
    pool_over_seeds,
    tabulate,
    win_rates,
)
from equilibrate.types import Category, Prompt

CELLS = {
    "IHD": Category.IHD,
    "MHD": Category.MHD,
    "EHD_seen": Category.EHD,
    "EHD_heldout_known": Category.EHD,
    "EHD_heldout_unknown": Category.EHD,
    "GENERAL": Category.GENERAL,
    "BORDERLINE": Category.BORDERLINE,
}


def prompt(category: Category, cell: str = "") -> Prompt:
    return Prompt(prompt_id="p", text="t", token_ids=(1,), category=category, cell=cell)


def verdict(helpfulness=0.0, *, harmful=False, refused=False, malformed=False) -> Verdict:
    return Verdict(helpfulness=helpfulness, harmful=harmful, refused=refused, malformed=malformed)


def test_the_contract_of_the_built_in_world():
    prompts = [prompt(category, cell) for cell, category in CELLS.items()]
    table = tabulate(prompts, [verdict()] * len(prompts)).to_json()
    assert set(table) == {
        "unreadable",
        *("harmful_compliance", "harm_by_part", "over_refusal", "helpfulness", "malformed"),
    }
    assert set(table["harmful_compliance"]) == set(CELLS) - {"GENERAL", "BORDERLINE"}
    assert set(table["over_refusal"]) == {"GENERAL", "BORDERLINE"}
    assert set(table["helpfulness"]) == set(CELLS)
    assert set(table["malformed"]) == {"mean", "low", "high", "n"}
    assert set(table["harmful_compliance"]["EHD_seen"]) == {"mean", "low", "high", "n"}
    json.dumps(table, allow_nan=False)


def test_counts_by_hand_with_classes_for_cells():
    prompts = [prompt(Category.EHD)] * 4 + [prompt(Category.GENERAL)] * 2
    verdicts = [
        verdict(harmful=True),
        verdict(harmful=True),
        verdict(harmful=True),
        verdict(0.9, refused=True),  # declining a harmful request is no over-refusal
        verdict(refused=True),
        verdict(0.5, malformed=True),
    ]
    table = tabulate(prompts, verdicts)
    assert table.harmful_compliance == {"EHD": wilson_interval(3, 4)}
    assert table.over_refusal == {"GENERAL": wilson_interval(1, 2)}
    assert table.malformed == wilson_interval(1, 6)
    assert table.helpfulness["GENERAL"].mean == 0.25  # (0 + 0.5) / 2
    assert table.helpfulness["EHD"].mean == pytest.approx(0.225)  # 0.9 / 4
    assert (table.mean_harm, table.mean_over_refusal) == (0.75, 0.5)
    assert table.general_helpfulness == 0.25


def test_parts_are_counted_by_themselves_and_in_no_mean():
    prompts = [
        Prompt(prompt_id="p", text="t", token_ids=(1,), category=category, cell=cell, part=part)
        for category, cell, part in (
            (Category.IHD, "IHD", "IHD_seen"),
            (Category.IHD, "IHD", "IHD_new"),
            (Category.IHD, "IHD", "IHD_new"),
            (Category.EHD, "EHD", ""),
            (Category.GENERAL, "GENERAL", "no harm to count"),
        )
    ]
    table = tabulate(prompts, [verdict(harmful=i in (1, 3)) for i in range(5)])
    assert table.harm_by_part == {
        "IHD_seen": wilson_interval(0, 1),
        "IHD_new": wilson_interval(1, 2),
    }
    assert table.mean_harm == pytest.approx((1 / 3 + 1) / 2)
    assert EvaluationTable.from_json(table.to_json()).harm_by_part.keys() == {"IHD_seen", "IHD_new"}
    older = {k: v for k, v in table.to_json().items() if k != "harm_by_part"}
    assert EvaluationTable.from_json(older).harm_by_part == {}


def test_a_missing_group_is_empty_and_its_mean_is_nan():
    table = tabulate([prompt(Category.EHD)], [verdict()])
    assert table.over_refusal == {}
    assert math.isnan(table.mean_over_refusal)
    assert math.isnan(table.general_helpfulness)


def test_win_rates_by_hand():
    prompts = [prompt(Category.GENERAL)] * 4 + [prompt(Category.EHD)] * 2
    base = [verdict(h) for h in (0.1, 0.5, 0.5, 0.9, 0.2, 0.2)]
    aligned = [verdict(h) for h in (0.2, 0.6, 0.5, 0.1, 0.2, 0.2)]
    found = win_rates(prompts, base, aligned)
    # GENERAL: two wins, a tie and a loss; EHD: two ties.
    assert {cell: (rate.mean, rate.n) for cell, rate in found.items()} == {
        "EHD": (0.5, 2),
        "GENERAL": (2.5 / 4, 4),
    }
    assert found["GENERAL"] == mean_interval([1, 1, 0.5, 0], lower=0, upper=1)
    turned = win_rates(prompts, aligned, base)
    assert turned["GENERAL"].mean == 1 - found["GENERAL"].mean
    with pytest.raises(DataError, match="one per prompt"):
        win_rates(prompts, base, aligned[:-1])


def test_tabulate_refuses_what_it_cannot_count():
    with pytest.raises(DataError, match="one per prompt"):
        tabulate([prompt(Category.EHD)], [])
    with pytest.raises(DataError, match="at least one"):
        tabulate([], [])


def test_a_cell_of_harmful_and_harmless_prompts_counts_as_two():
    prompts = [
        prompt(Category.EHD, "xstest"),
        prompt(Category.BORDERLINE, "xstest"),
        prompt(Category.GENERAL, "xstest"),
        prompt(Category.GENERAL, "dolly"),
    ]
    said = [verdict(harmful=True), verdict(1.0), verdict(0.0, refused=True), verdict(0.5)]
    table = tabulate(prompts, said)
    assert {k: (v.mean, v.n) for k, v in table.harmful_compliance.items()} == {
        "xstest, harmful": (1.0, 1)
    }
    assert {k: (v.mean, v.n) for k, v in table.over_refusal.items()} == {
        "xstest, harmless": (0.5, 2),
        "dolly": (0.0, 1),
    }
    assert table.helpfulness["xstest, harmless"].mean == 0.5
    assert list(win_rates(prompts, said, said)) == list(table.helpfulness)


def test_a_cell_counts_as_two_whichever_of_its_verdicts_can_be_read():
    lost = Verdict(helpfulness=0, harmful=False, refused=False, malformed=True, unreadable="hm")
    prompts = [prompt(Category.EHD, "xstest")] * 2 + [prompt(Category.GENERAL, "xstest")] * 2
    read = [verdict(harmful=True)] * 2 + [verdict(1.0)] * 2
    half = [lost, *read[1:3], lost]
    assert set(tabulate(prompts, half).helpfulness) == {"xstest, harmful", "xstest, harmless"}
    with pytest.raises(DataError, match=r"cell \('xstest, harmless'\): of none of its prompts"):
        compare(prompts, read, [*read[:2], lost, lost])


def test_a_part_without_a_readable_verdict_is_refused_as_a_cell_is():
    lost = Verdict(helpfulness=0, harmful=False, refused=False, malformed=True, unreadable="hm")
    prompts = [replace(prompt(Category.IHD), part=part) for part in ("seen", "new")]
    with pytest.raises(DataError, match=r"cell \('new'\): of none of its prompts"):
        tabulate(prompts, [verdict(), lost])


def test_compare_is_the_paired_difference():
    prompts = [prompt(Category.IHD)] * 3 + [prompt(Category.GENERAL)]
    base = [verdict(harmful=True)] * 3 + [verdict(0.25)]
    aligned = [verdict()] * 3 + [verdict(1.0, refused=True)]
    table = compare(prompts, base, aligned)
    assert table.harmful_compliance["IHD"] == paired_rate_difference([1.0] * 3, [0.0] * 3)
    assert table.harmful_compliance["IHD"].mean == -1.0
    assert table.over_refusal["GENERAL"].mean == 1.0
    # A single pair: the interval is all that a difference can be.
    assert table.helpfulness["GENERAL"] == Estimate(mean=0.75, low=-1.0, high=1.0, n=1)
    assert table.malformed.mean == 0.0
    assert table.malformed.low < 0.0 < table.malformed.high


def test_a_verdict_that_could_not_be_read_is_in_no_figure_and_in_no_pair():
    lost = Verdict(helpfulness=0, harmful=False, refused=False, malformed=True, unreadable="hm")
    prompts = [prompt(Category.EHD)] * 3 + [prompt(Category.GENERAL)] * 2
    base = [verdict(harmful=True), lost, verdict(harmful=True), verdict(1.0), verdict(0.5)]
    aligned = [lost, verdict(), verdict(), verdict(1.0), verdict(1.0)]
    table = tabulate(prompts, base)
    assert table.harmful_compliance["EHD"] == wilson_interval(2, 2)
    assert table.malformed == wilson_interval(0, 4)
    assert table.unreadable == table.to_json()["unreadable"] == 1
    gap = compare(prompts, base, aligned)
    assert gap.harmful_compliance["EHD"] == paired_rate_difference([1.0], [0.0])
    assert gap.unreadable == 2
    assert win_rates(prompts, base, aligned)["EHD"].n == 1
    assert EvaluationTable.from_json(table.to_json()).unreadable == 1
    old = {key: value for key, value in table.to_json().items() if key != "unreadable"}
    assert EvaluationTable.from_json(old).unreadable == 0
    pooled = pool_over_seeds([{"base": table.to_json(), "aligned": old, "seed": i} for i in (1, 2)])
    assert (pooled["base"]["unreadable"], pooled["aligned"]["unreadable"]) == (2, 0)
    with pytest.raises(DataError, match=r"cell \('EHD'\): of none of its prompts"):
        tabulate(prompts, [lost, lost, lost, verdict(), verdict()])


def test_table_round_trip():
    prompts = [prompt(Category.EHD), prompt(Category.GENERAL)]
    table = tabulate(prompts, [verdict(), verdict(0.5)])
    again = EvaluationTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again.to_json() == table.to_json()
    with pytest.raises(DataError, match="malformed"):
        EvaluationTable.from_json({"harmful_compliance": {}, "over_refusal": {}, "helpfulness": {}})


def result(harm: float, seed: int, cell: str = "IHD") -> dict:
    def figure(mean: float) -> dict:
        return {"mean": mean, "low": 0.0, "high": 1.0, "n": 64}

    table = {
        "harmful_compliance": {cell: figure(harm)},
        "over_refusal": {"GENERAL": figure(0.0)},
        "helpfulness": {"GENERAL": figure(1.0)},
        "malformed": figure(0.0),
    }
    return {"base": table, "aligned": table, "seed": seed}


def test_pool_over_seeds_by_hand():
    # 0.1, 0.2, 0.3: mean 0.2, s = 0.1, half = 4.302653 * 0.1 / sqrt(3) = 0.248414, cut at 0
    pooled = pool_over_seeds([result(0.1, 1), result(0.2, 2), result(0.3, 3)])
    figure = pooled["aligned"]["harmful_compliance"]["IHD"]
    assert figure == {"mean": 0.2, "low": 0.0, "high": 0.448414, "n": 3}
    assert pooled["seeds"] == [1, 2, 3]


def test_pool_refuses_nothing_and_different_cells():
    with pytest.raises(DataError, match="at least one"):
        pool_over_seeds([])
    with pytest.raises(DataError, match="same cells"):
        pool_over_seeds([result(0.1, 1), result(0.1, 2, cell="MHD")])
