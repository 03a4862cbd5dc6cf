"""A grid of runs, and what it says about the claims it was made to test. Nothing here runs one.

grid      arms x seeds -> the runs to make; equal ones are shared
tasks     which of them one process makes, and in what order
results   the record of a finished run
packed    the records of many runs in one file
figures   dotted names into a result, and how they are written
claims    gaps over seeds -> verdicts
estimate  how long the rest takes
summary   all of it as Markdown
plots     curves and fronts
page      all of it as one page
"""

from equilibrate.study.claims import ClaimVerdict, JudgedClaim, decide, judge_claim
from equilibrate.study.estimate import TimeLeft, time_left
from equilibrate.study.figures import figure_of
from equilibrate.study.grid import (
    PlannedRun,
    Resolve,
    RunSpec,
    expand,
    plan_runs,
    run_key,
)
from equilibrate.study.packed import read_results, take_in, write_result
from equilibrate.study.page import write_page
from equilibrate.study.results import RunResult, missing_runs, results_by_arm
from equilibrate.study.summary import summary_markdown, with_section
from equilibrate.study.tasks import deal_tasks, next_task

__all__ = [
    "ClaimVerdict",
    "JudgedClaim",
    "PlannedRun",
    "Resolve",
    "RunResult",
    "RunSpec",
    "TimeLeft",
    "deal_tasks",
    "decide",
    "expand",
    "figure_of",
    "judge_claim",
    "missing_runs",
    "next_task",
    "plan_runs",
    "read_results",
    "results_by_arm",
    "run_key",
    "summary_markdown",
    "take_in",
    "time_left",
    "with_section",
    "write_page",
    "write_result",
]
