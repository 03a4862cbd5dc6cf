"""The study as Markdown: verdicts, a table of figures per question, and what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equilibrate.config.study import Claim, Question, StudyConfig
from equilibrate.data.rows import counted
from equilibrate.study.claims import FIRM_SEEDS, JudgedClaim, judge_claim
from equilibrate.study.figures import (
    absent_figures,
    figure_title,
    is_share,
    over_seeds,
    show_figure,
    show_gap,
)
from equilibrate.study.grid import PlannedRun
from equilibrate.study.results import (
    ByArm,
    RunResult,
    missing_runs,
    results_by_arm,
    seeds_with_several_starts,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureTable:
    """Figures of a question's arms, as text."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Arm, figures as mean with a 95 % t-interval over seeds, number of seeds."""


def summary_markdown(
    study: StudyConfig, runs: Sequence[PlannedRun], results: Mapping[str, RunResult]
) -> str:
    """All that the study says so far.

    Args: runs: from `plan_runs`; results: from `read_results`, others than those of `runs` ignored.
    """
    by_arm = results_by_arm(runs, results)
    lines = [f"# {study.name}", "", progress_line(study, runs, results), "", "## Verdicts", ""]
    lines += [
        "| question | claim | verdict | gap [95 %] | effect size d_z | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for question in study.questions:
        for claim in question.claims:
            lines.append(_verdict_line(question, judge_claim(claim, by_arm)))
    lines += [
        "",
        "Gaps of shares are percentage points, of fronts those of the area under them or, "
        "at equal harm, of their height over one another.",
    ]
    for question in study.questions:
        lines += ["", f"## {question.id}: {question.title}", ""]
        lines += [question.text.strip(), ""] if question.text else []
        table = figure_table(study, question, by_arm)
        lines += [_row(table.heads), _row(["---"] * len(table.heads)), *map(_row, table.rows)]
    for title, remarks in remarks_on(study, runs, results).items():
        lines += ["", f"## {title}", "", *(f"- {line}" for line in remarks)]
    return "\n".join(lines)


def remarks_on(
    study: StudyConfig, runs: Sequence[PlannedRun], results: Mapping[str, RunResult]
) -> dict[str, list[str]]:
    """What a reader of the verdicts must know: lines by their title, none if all is well."""
    remarks = {
        "Different starts": _start_lines(study, results_by_arm(runs, results)),
        "Missing": missing_lines(study, runs, results),
    }
    return {title: lines for title, lines in remarks.items() if lines}


def with_section(document: str, name: str, summary: str) -> str:
    """`document` with its section on the study `name` written anew, or added at its end.

    Args: summary: from `summary_markdown`; its headings go one level down.

    The section runs to the next heading of its level; what surrounds it stays as it is.
    """
    head = f"## Results of `{name}`\n"
    body = re.sub("^##", "###", summary.partition("\n")[2].strip(), flags=re.MULTILINE)
    before, found, rest = document.partition(head)
    following = re.search("^## ", rest, flags=re.MULTILINE) if found else None
    after = f"\n{rest[following.start() :]}" if following else ""
    return f"{before.rstrip()}\n\n{head}\n{body}\n{after}".lstrip()


def progress_line(
    study: StudyConfig, runs: Sequence[PlannedRun], results: Mapping[str, RunResult]
) -> str:
    num_left = len(missing_runs(runs, results))
    judges = sorted({results[run.key].judge for run in runs if run.key in results})
    return (
        f"{len(runs) - num_left} of {len(runs)} runs finished: {len(study.arms)} arms, "
        f"seeds {' / '.join(map(str, study.seeds))}"
        + (f", judged by {' and '.join(judges)}." if judges else ".")
    )


def figure_table(study: StudyConfig, question: Question, by_arm: ByArm) -> FigureTable:
    """One row per arm of the question, one column per figure."""
    names = question.tabulated

    def row(arm: str) -> tuple[str, ...]:
        results = by_arm[arm].values()
        figures = (show_figure(over_seeds(results, n), share=is_share(n)) for n in names)
        return (study.label_of(arm), *figures, str(len(results)))

    return FigureTable(
        heads=("arm", *map(figure_title, names), "seeds"), rows=tuple(map(row, question.arms))
    )


def verdict_text(judged: JudgedClaim) -> str:
    """For example `reproduced (3 seeds, preliminary)`."""
    if judged.num_seeds >= FIRM_SEEDS:
        return str(judged.verdict)
    return f"{judged.verdict} ({seeds_text(judged)})"


def seeds_text(judged: JudgedClaim) -> str:
    """For example `3 seeds, preliminary`."""
    seeds = counted(judged.num_seeds, "seed")
    return f"{seeds}, preliminary" if judged.is_preliminary else seeds


def effect_text(judged: JudgedClaim) -> str:
    size = judged.effect_size
    return "-" if size != size else f"{size:+.1f}".replace("-", "\N{MINUS SIGN}")


def claim_rule(study: StudyConfig, claim: Claim) -> str:
    """For example `harm: masked against plain, expected lower by more than 2 points`."""
    what = " / ".join(claim.front or (claim.figure,))
    if claim.compare == "equal_harm":
        what += " at equal harm"
    # Labels may hold commas.
    sides = ["; ".join(map(study.label_of, arms)) for arms in (claim.of, claim.against)]
    if claim.against_figure:
        sides[1] += f" at {claim.against_figure}"
    share = claim.front is not None or is_share(claim.figure)
    margin = f"{100 * claim.margin:g} points" if share else f"{claim.margin:g}"
    rule: str = claim.expect
    if claim.margin:
        rule += f" within {margin}" if claim.expect == "same" else f" by more than {margin}"
    return f"{what}: {sides[0]} against {sides[1]}, expected {rule}"


def missing_lines(
    study: StudyConfig, runs: Sequence[PlannedRun], results: Mapping[str, RunResult]
) -> list[str]:
    """Runs without a result, arm by arm, and figures that no result holds."""
    seeds: dict[tuple[str, ...], list[int]] = {}
    for run in missing_runs(runs, results):
        seeds.setdefault(run.arms, []).append(run.seed)
    lines = [
        f"{', '.join(map(study.label_of, arms))}: {_seeds(missing)}"
        for arms, missing in seeds.items()
    ]
    return lines + absent_figures(study, results_by_arm(runs, results))


def _start_lines(study: StudyConfig, by_arm: ByArm) -> list[str]:
    """Questions with a claim whose arms differ in their start, as after runs on two machines."""
    lines = []
    for question in study.questions:
        arms = [(*claim.of, *claim.against) for claim in question.claims]
        seeds = sorted({seed for pair in arms for seed in seeds_with_several_starts(pair, by_arm)})
        if seeds:
            lines.append(
                f"{question.id}: {_seeds(seeds)}: the arms of a claim were not all measured from "
                "the same start (another base model, or one sampled or judged otherwise), and its "
                "gap holds that too"
            )
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {' / '.join(map(str, seeds))}"


def _verdict_line(question: Question, judged: JudgedClaim) -> str:
    return _row(
        [
            question.id,
            judged.claim.text,
            verdict_text(judged),
            show_gap(judged.gap, share=judged.is_share),
            effect_text(judged),
            str(judged.num_seeds),
        ]
    )


def _row(cells: Sequence[str]) -> str:
    # A bar or a line break inside a text would end its cell.
    texts = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(texts)} |"
