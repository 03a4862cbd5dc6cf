"""The last step of a run: results, samples and report of what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from equilibrate.config.base import RunConfig
from equilibrate.evaluation import Judge
from equilibrate.report import (
    TrainingSummary,
    installed_versions,
    write_report,
    write_results,
)
from equilibrate.run.assessment import difference, read_assessment, sample_rows
from equilibrate.run.folder import say, stage_seconds
from equilibrate.run.sinks import SAMPLES_FILE, write_whole
from equilibrate.types import Prompt


def write_outcome(
    config: RunConfig,
    run: Path,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    training: TrainingSummary,
    cost_budget: float | None,
) -> None:
    """Results, samples and report of what `base.json` and `aligned.json` hold."""
    if prompts:
        base, aligned = (read_assessment(run / f"{n}.json", prompts) for n in ("base", "aligned"))
        rows = sample_rows({"base": base, "aligned": aligned})
        write_whole(run / SAMPLES_FILE, "".join(json.dumps(row) + "\n" for row in rows))
        write_results(
            run / "results.json",
            base=base.table,
            aligned=aligned.table,
            difference=difference(base, aligned),
            training=training,
            cost_budget=cost_budget,
            stage_seconds=stage_seconds(run),
            judge=judge.name,
            versions=installed_versions(),
            seed=config.seed,
        )
    say(f"report: {write_report(run)}")
