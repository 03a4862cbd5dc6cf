"""The page of one run."""

from __future__ import annotations

from pathlib import Path

from equilibrate.report.card import judge_agreement, write_card
from equilibrate.report.figures import all_figures, split_seconds
from equilibrate.report.headline import headline_cards, headline_groups, unreadable_verdicts
from equilibrate.report.html import leaves, own_file, plotly_library, script_json, template
from equilibrate.report.inputs import RunRecord, read_run
from equilibrate.run.sinks import write_whole
from equilibrate.run.watch import BudgetWatch

REPORT_FILE = "report.html"
MAX_SAMPLES = 3000
"""Answers in the browser of samples; more would make the page slow to open."""


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run folder, after the card of its policy, and return its path.

    Raises: DataError if the folder is no run or holds a broken file, ResourceError without plotly.
    """
    record = read_run(run_folder)
    write_card(run_folder, record)
    path = run_folder / REPORT_FILE
    write_whole(path, render(record))
    return path


def render(record: RunRecord) -> str:
    """The page as text."""
    figures = {name: figure for name, figure in all_figures(record).items() if figure is not None}
    samples = record.samples[:MAX_SAMPLES]
    return template("equilibrate.report", "page.html.j2").render(
        record=record,
        cards=headline_cards(record),
        groups=headline_groups(record),
        alarm=budget_alarm(record),
        agreement=judge_agreement(record),
        unreadable=unreadable_verdicts(base=record.base, aligned=record.aligned),
        recorded=set(figures),
        figures_json=script_json(figures),
        samples_json=script_json(samples),
        num_samples=len(samples),
        num_samples_left_out=len(record.samples) - len(samples),
        num_iterations=len(record.metrics),
        settings=list(leaves(record.config)),
        environment=record.results.get("versions", {}),
        seconds=_seconds(record),
        style=own_file("style.css"),
        script=own_file("page.js"),
        plotly=plotly_library() if figures else "",
    )


def budget_alarm(record: RunRecord) -> str:
    """What is to be said of a budget that the run could not reach; empty if it could."""
    if record.multiplier_cap is None or record.bounded is None:
        return ""
    metric, bound = record.bounded
    watch = BudgetWatch(cap=record.multiplier_cap, budget=bound, cost_name=metric)
    found = ""
    for row in record.metrics:
        found = watch.observe(row)
    return found


def _seconds(record: RunRecord) -> list[tuple[str, float, float]]:
    """Phase, seconds and share of the longest phase, longest first."""
    split = split_seconds(record.results.get("seconds_by_phase") or {})
    phases = {name: value for name, value in split.items() if value > 0}
    longest = max(phases.values(), default=0.0)
    return [
        (name, value, value / longest)
        for name, value in sorted(phases.items(), key=lambda phase: -phase[1])
    ]
