"""Dotted names into a result."""

from __future__ import annotations

import math

import pytest

from equilibrate.errors import DataError
from equilibrate.evaluation import Estimate
from equilibrate.study import figure_of, results_by_arm
from equilibrate.study.figures import (
    absent_figures,
    figure_or_nan,
    figure_title,
    front_point,
    is_share,
    over_seeds,
    show_figure,
    show_gap,
)
from tests.unit.study.studies import plan, result, study, with_question

MINUS = "\N{MINUS SIGN}"
RUNS = plan(study())
MADE = result(
    RUNS[0], harm=0.2, refusal=0.1, helpful=0.8, training={"labels": 1200.0, "lost": math.nan}
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("harm", 0.2),  # (0.15 + 0.25)/2
        ("harm.EHD_seen", 0.15),
        ("harm.IHD_new", 0.35),
        ("over_refusal", 0.1),
        ("over_refusal.BORDERLINE", 0.1),
        ("helpfulness.GENERAL", 0.8),
        ("malformed", 0.03),
        ("training.labels", 1200.0),
    ],
)
def test_every_kind_of_figure(name: str, value: float):
    assert figure_of(MADE, name) == pytest.approx(value)


def test_what_a_result_does_not_hold_is_named_with_its_nearest():
    with pytest.raises(DataError, match=r"'harm\.EHD_sen'.*did you mean 'EHD_seen'"):
        figure_of(MADE, "harm.EHD_sen")
    with pytest.raises(DataError, match=r"'training\.xyz'.*it has labels, lost"):
        figure_of(MADE, "training.xyz")
    assert math.isnan(figure_or_nan(MADE, "training.xyz"))
    assert math.isnan(figure_of(MADE, "training.lost"))


def test_a_figure_that_no_run_has_is_told_once():
    figures = ["harm", "training.labels", "training.lables"]
    config = study(**with_question(figures=figures, claims=[]))
    by_arm = results_by_arm(RUNS, {RUNS[0].key: MADE, RUNS[1].key: result(RUNS[1])})
    (line,) = absent_figures(config, by_arm)  # RUNS[1] lacks labels, but RUNS[0] has them
    assert line.startswith("Q1: figure ('training.lables')")
    assert absent_figures(config, results_by_arm(RUNS, {})) == []


def test_over_seeds_by_hand():
    """0.1, 0.2, 0.3: s = 0.1, t(2) = 4.3027: half width 4.3027 x 0.1 / sqrt(3) = 0.2484."""
    three = [result(run, harm=harm) for run, harm in zip(RUNS, (0.1, 0.2, 0.3), strict=False)]
    harm = over_seeds(three, "harm")
    assert harm is not None
    assert (harm.mean, harm.n) == (pytest.approx(0.2), 3)
    assert (harm.low, harm.high) == (0.0, pytest.approx(0.4484, abs=1e-4))  # a share has no -5 %
    single = over_seeds(three[:1], "harm")
    assert single is not None
    assert math.isnan(single.low)
    assert over_seeds([], "harm") is None


def test_equal_seeds_are_certain_of_what_they_counted_and_not_of_a_rate():
    """Two seeds leave room for a share of 1 - 0.05^(1/2) = 0.776 of other values."""
    two = [result(run, harm=0.0, training={"kept_fraction": 1.0}) for run in RUNS[:2]]
    harm, kept = over_seeds(two, "harm"), over_seeds(two, "training.kept_fraction")
    assert harm is not None
    assert (harm.low, harm.high) == (0.0, pytest.approx(0.7764, abs=1e-4))
    assert kept is not None
    assert kept.low == kept.high == 1.0
    assert over_seeds([MADE], "training.lost") is None


def test_refusals_become_a_value():
    assert front_point(MADE, ("harm", "helpfulness.GENERAL")) == pytest.approx((0.2, 0.8))
    assert front_point(MADE, ("harm.IHD", "over_refusal")) == pytest.approx((0.25, 0.9))


def test_words():
    wide = Estimate(mean=0.123, low=0.1, high=0.146, n=5)
    one = Estimate(mean=0.123, low=math.nan, high=math.nan, n=1)
    assert show_figure(wide, share=True) == "12.3 % [10.0, 14.6]"
    assert show_figure(one, share=True) == "12.3 %"
    assert show_figure(None, share=True) == "-"
    assert show_figure(Estimate(mean=1234.5, low=-2.0, high=3000.0, n=2), share=False) == (
        f"1,234 [{MINUS}2, 3,000]"
    )
    gap = Estimate(mean=-0.05, low=-0.1, high=0.0, n=5)
    assert show_gap(gap, share=True) == f"{MINUS}5.0 [{MINUS}10.0, +0.0]"
    assert show_gap(gap, share=False) == f"{MINUS}0.05 [{MINUS}0.1, +0]"
    assert show_gap(None, share=True) == "-"
    assert show_gap(one, share=True) == "+12.3"
    assert figure_title("harm.EHD_seen") == "harmful answers, EHD_seen"
    assert figure_title("malformed") == "malformed answers"
    assert figure_title("training.kept_fraction") == "kept"


def test_shares_are_what_percent_is_for():
    assert is_share("malformed")
    assert is_share("training.kept_fraction")
    assert not is_share("training.seconds")
