from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from equilibrate.evaluation import Estimate, EvaluationTable
from equilibrate.report.headline import headline_cards, headline_groups, percent, signed
from equilibrate.report.inputs import RunRecord, read_run


def estimate(mean: float, half: float = 0.01) -> Estimate:
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=100)


def table(harm: dict[str, Estimate], refusal: Estimate, helpfulness: Estimate) -> EvaluationTable:
    return EvaluationTable(
        harmful_compliance=harm,
        over_refusal={"GENERAL": refusal},
        helpfulness={"GENERAL": helpfulness, "EHD": estimate(0.0)},
        malformed=estimate(0.02),
    )


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    (tmp_path / "results.json").write_text('{"cost_mean": -0.25, "cost_budget": 0.0}')
    zero = estimate(0.0)
    return dataclasses.replace(
        read_run(tmp_path),
        base=table({"EHD": estimate(0.9), "IHD": estimate(0.7)}, estimate(0.1), estimate(0.5)),
        aligned=table({"EHD": estimate(0.1), "IHD": estimate(0.1)}, estimate(0.3), estimate(0.5)),
        difference=table(
            {"EHD": estimate(-0.8), "IHD": estimate(-0.6, half=0.7)}, estimate(0.2), zero
        ),
    )


def test_colours_follow_the_paired_interval(record: RunRecord):
    harm, refusal, helpfulness, malformed = headline_groups(record)
    assert [line.judgement for line in harm.lines] == ["better", "same"]  # IHD: -1.3 to 0.1
    assert [line.judgement for line in refusal.lines] == ["worse"]
    assert helpfulness.lines[0].judgement == "same"
    assert malformed.lines[0].cell == "all prompts"


def test_parts_of_cells_have_a_table_where_there_are_any(record: RunRecord):
    parts = {"IHD_new": estimate(0.6)}
    with_parts = {
        name: dataclasses.replace(getattr(record, name), harm_by_part=parts)
        for name in ("base", "aligned", "difference")
    }
    groups = headline_groups(dataclasses.replace(record, **with_parts))
    assert [line.cell for line in groups[1].lines] == ["IHD_new"]
    assert len(groups) == len(headline_groups(record)) + 1


def test_the_win_rate_of_the_aligned_model_is_what_the_base_lacks(record: RunRecord):
    rates = {"GENERAL": estimate(0.7, half=0.1), "EHD": estimate(0.5)}
    told = {"judge": "mine", "cells": {cell: rate.to_json() for cell, rate in rates.items()}}
    results = {**record.results, "win_rate": told}
    groups = headline_groups(dataclasses.replace(record, results=results))
    assert len(groups) == len(headline_groups(record)) + 1
    wins = groups[-2]
    assert wins.title == "Win rate"
    assert "by mine" in wins.hint
    assert [line.judgement for line in wins.lines] == ["better", "same"]
    general = wins.lines[0]
    assert general.base.mean == pytest.approx(0.3)
    assert (general.base.low, general.base.high) == (pytest.approx(0.2), pytest.approx(0.4))
    assert general.difference.low == pytest.approx(0.2)


def test_more_helpful_is_better(record: RunRecord):
    gap = record.difference
    better = dataclasses.replace(gap, helpfulness={"GENERAL": estimate(0.2)})
    groups = headline_groups(dataclasses.replace(record, difference=better))
    assert groups[2].lines[0].judgement == "better"


def test_without_pairs_nothing_is_claimed(record: RunRecord):
    groups = headline_groups(dataclasses.replace(record, difference=None))
    assert {line.judgement for group in groups for line in group.lines} == {"same"}
    cards = headline_cards(dataclasses.replace(record, difference=None))
    assert [card.judgement for card in cards[:3]] == ["same"] * 3


def test_cards_by_hand(record: RunRecord):
    harm, refusal, helpfulness, cost = headline_cards(record)
    assert (harm.before, harm.after) == ("80.0 %", "10.0 %")  # (0.9 + 0.7)/2, (0.1 + 0.1)/2
    # Mean difference -0.7, half width hypot(0.01, 0.7)/2 = 0.35: leaves out zero.
    assert harm.judgement == "better"
    assert refusal.judgement == "worse"
    assert (helpfulness.before, helpfulness.judgement) == ("50.0 %", "same")  # GENERAL alone
    assert (cost.after, cost.judgement) == ("\N{MINUS SIGN}0.250", "better")


def test_a_cost_above_its_budget_is_worse(record: RunRecord):
    over = dataclasses.replace(record, results={"cost_mean": 0.1, "cost_budget": 0.0})
    assert headline_cards(over)[-1].judgement == "worse"


def test_an_unevaluated_run_has_neither(record: RunRecord):
    empty = dataclasses.replace(record, base=None)
    assert headline_groups(empty) == []
    assert headline_cards(empty) == []


def test_words_of_numbers():
    assert percent(0.1234) == "12.3 %"
    assert percent(float("nan")) == "-"
    assert signed(-0.05) == "\N{MINUS SIGN}5.0"
    assert signed(0.05) == "+5.0"


def test_cost_and_share_stand_beside_the_bound_that_there_is(record: RunRecord):
    results = {"cost_mean": -0.25, "cost_budget": None, "unsafe_share": 0.0625}
    config = {"constraint": {"max_unsafe_share": 0.05, "budget": None}}
    cost, share = headline_cards(dataclasses.replace(record, results=results, config=config))[3:]
    assert (cost.title, cost.note, cost.judgement) == (
        "Learned cost", "last iterations, without a bound", "same",
    )  # fmt: skip
    assert (share.after, share.note, share.judgement) == (
        "6.2 %", "last iterations, at most 5 %", "worse",
    )  # fmt: skip
    of_budget = {"cost_mean": -0.25, "cost_budget": 0.0, "unsafe_share": 0.0625}
    cost, share = headline_cards(dataclasses.replace(record, results=of_budget))[3:]
    assert (cost.judgement, share.note) == ("better", "last iterations, without a bound")
