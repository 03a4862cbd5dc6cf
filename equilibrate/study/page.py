"""The study as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equilibrate.config.study import Question, StudyConfig
from equilibrate.report.html import leaves, own_file, plotly_library, script_json, template
from equilibrate.run.sinks import write_whole
from equilibrate.study.claims import ClaimVerdict, JudgedClaim, judge_claim
from equilibrate.study.figures import show_change, show_gap
from equilibrate.study.grid import PlannedRun
from equilibrate.study.plots import Plot, question_plots
from equilibrate.study.results import ByArm, RunResult, results_by_arm
from equilibrate.study.summary import (
    FigureTable,
    claim_rule,
    effect_text,
    figure_table,
    progress_line,
    remarks_on,
    seeds_text,
)

BADGES = {
    ClaimVerdict.REPRODUCED: "better",
    ClaimVerdict.NOT_REPRODUCED: "worse",
    ClaimVerdict.INCONCLUSIVE: "same",
    ClaimVerdict.NOT_MEASURED: "absent-verdict",
}
"""verdict -> class of its badge in the style sheet"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimView:
    """One row of the table of verdicts, as text."""

    text: str
    rule: str
    note: str
    verdict: str
    seeds: str
    badge: str
    is_preliminary: bool
    gap: str
    effect: str
    by_seed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionView:
    question: Question
    claims: list[ClaimView]
    plots: list[Plot]
    table: FigureTable


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmView:
    name: str
    kind: str
    settings: list[tuple[str, str]]
    """What the arm lays over `base` and `common`."""
    twins: list[str]
    """Other arms that resolve to the same runs."""


def write_page(
    path: Path,
    study: StudyConfig,
    runs: Sequence[PlannedRun],
    results: Mapping[str, RunResult],
) -> Path:
    """Write the page whole or not at all, and return its path.

    Raises: ResourceError without plotly.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render(study, runs, results))
    return path


def render(study: StudyConfig, runs: Sequence[PlannedRun], results: Mapping[str, RunResult]) -> str:
    """The page as text."""
    by_arm = results_by_arm(runs, results)
    questions = [_question(study, question, by_arm) for question in study.questions]
    figures = {
        plot.key: plot.figure
        for view in questions
        for plot in view.plots
        if plot.figure is not None
    }
    return template("equilibrate.study", "page.html.j2").render(
        study=study,
        progress=progress_line(study, runs, results),
        questions=questions,
        arms=_arms(study, runs),
        common={kind: list(leaves(tree)) for kind, tree in study.common.items()},
        remarks=remarks_on(study, runs, results),
        figures_json=script_json(figures),
        style=own_file("style.css"),
        script=own_file("page.js"),
        plotly=plotly_library() if figures else "",
    )


def _question(study: StudyConfig, question: Question, by_arm: ByArm) -> QuestionView:
    return QuestionView(
        question=question,
        claims=[_claim(study, judge_claim(claim, by_arm)) for claim in question.claims],
        plots=question_plots(study, question, by_arm),
        table=figure_table(study, question, by_arm),
    )


def _claim(study: StudyConfig, judged: JudgedClaim) -> ClaimView:
    share = judged.is_share
    return ClaimView(
        text=judged.claim.text,
        rule=claim_rule(study, judged.claim),
        note=judged.claim.note,
        verdict=judged.verdict,
        seeds=seeds_text(judged),
        badge=BADGES[judged.verdict],
        is_preliminary=judged.is_preliminary,
        gap=show_gap(judged.gap, share=share),
        effect=effect_text(judged),
        by_seed=" / ".join(show_change(gap, share=share) for gap in judged.gaps.values()),
    )


def _arms(study: StudyConfig, runs: Sequence[PlannedRun]) -> list[ArmView]:
    shared = {arm: run.arms for run in runs for arm in run.arms}
    return [
        ArmView(
            name=study.label_of(arm),
            kind=config.kind,
            settings=list(leaves(config.set)),
            twins=[study.label_of(twin) for twin in shared.get(arm, ()) if twin != arm],
        )
        for arm, config in study.arms.items()
    ]
