"""What people look at after a run: `results.json` for scripts, `report.html` for eyes."""

from equilibrate.report.page import write_report
from equilibrate.report.pooled import paired_markdown, pooled_markdown
from equilibrate.report.results import (
    TrainingSummary,
    summarise_training,
    write_results,
)

__all__ = [
    "TrainingSummary",
    "paired_markdown",
    "pooled_markdown",
    "summarise_training",
    "write_report",
    "write_results",
]
