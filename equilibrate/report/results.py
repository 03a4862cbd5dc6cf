"""`results.json`: what scripts read of a finished run, and the step that writes it last."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from equilibrate.config.base import COST_METRICS, SHARE_METRICS
from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.evaluation import EvaluationTable, Judge
from equilibrate.evaluation.agreement import read_agreement
from equilibrate.evaluation.judge_plugins import CombinedJudge
from equilibrate.report.card import made_of
from equilibrate.report.inputs import LAST_ITERATIONS, numbers, shares_of
from equilibrate.report.page import write_report
from equilibrate.run.assessment import difference, read_assessment, sample_rows
from equilibrate.run.assessment import win_rate as win_rate_of
from equilibrate.run.folder import say, stage_seconds
from equilibrate.run.sinks import (
    METRICS_FILE,
    SAMPLES_FILE,
    TIMINGS_FILE,
    Row,
    read_rows,
    write_whole,
)
from equilibrate.run.versions import installed_versions
from equilibrate.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSummary:
    """What `results.json` keeps of the training itself; None where nothing was recorded."""

    parity_gap_nats_max: float | None
    cost_mean: float | None
    """Constrained cost, mean over the last iterations."""
    unsafe_share: float | None = None
    """Likewise, of the same answers the share that the cost model calls unsafe."""
    multiplier_final: float | None
    iterations: int | None
    """Iterations done."""
    kl_final: float | None
    """KL to the reference in the last iteration, nats per token."""
    mixture: Mapping[str, float]
    """Realised share of each class."""
    seconds_by_phase: Mapping[str, float]
    """Summed over all iterations."""
    figures: Mapping[str, float]
    """How much the policy learned from: trained_tokens, those that moved it, over all iterations
    but once however many epochs; kept_fraction, their share of the answers' tokens; and what else
    a training reports."""


def summarise_training(
    run_folder: Path, *, scope: Literal["all", "safety"] = "safety"
) -> TrainingSummary:
    """Read `metrics.jsonl` and `timings.jsonl`.

    Args: scope: prompts whose cost is constrained, as in `constraint.scope`.
    """
    rows = read_rows(run_folder / METRICS_FILE)
    costs, shares = (
        numbers(rows, names[scope])[-LAST_ITERATIONS:] for names in (COST_METRICS, SHARE_METRICS)
    )
    last = rows[-1] if rows else {}
    seconds: dict[str, float] = {}
    for row in read_rows(run_folder / TIMINGS_FILE):
        for phase, value in row["seconds"].items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    return TrainingSummary(
        parity_gap_nats_max=max(numbers(rows, "parity_gap_nats"), default=None),
        cost_mean=math.fsum(costs) / len(costs) if costs else None,
        unsafe_share=math.fsum(shares) / len(shares) if shares else None,
        multiplier_final=next(iter(numbers(rows, "multiplier")[::-1]), None),
        iterations=last["iteration"] + 1 if last else None,
        kl_final=next(iter(numbers(rows, "kl")[::-1]), None),
        mixture=shares_of(last),
        seconds_by_phase=seconds,
        figures=_learned(rows),
    )


def _learned(rows: Sequence[Row]) -> dict[str, float]:
    # An iteration that was done again after a resume counts once.
    last = {row["iteration"]: row for row in rows if "num_tokens" in row}
    tokens = math.fsum(row["num_tokens"] for row in last.values())
    kept = math.fsum(row["num_tokens"] * row["kept_fraction"] for row in last.values())
    return {"trained_tokens": kept, "kept_fraction": kept / tokens} if tokens else {}


def write_results(
    path: Path,
    *,
    base: EvaluationTable | None,
    aligned: EvaluationTable | None,
    difference: EvaluationTable | None,
    training: TrainingSummary,
    cost_budget: float | None,
    max_unsafe_share: float | None = None,
    stage_seconds: Mapping[str, float],
    judge: str,
    versions: Mapping[str, str],
    seed: int,
    judge_agreement: Sequence[Mapping[str, Any]] = (),
    win_rate: Mapping[str, Any] | None = None,
    made_of: Mapping[str, Any] | None = None,
) -> None:
    """Write `results.json` whole or not at all.

    Args:
        base, aligned: None where nothing was measured, as of a scorer.
        difference: aligned - base, paired by prompt (`evaluation.compare`).
        cost_budget: None where the mean cost is not bounded.
        max_unsafe_share: likewise, of the share of unsafe answers. Where neither is bounded the
            multiplier means nothing either.
        stage_seconds: what the run spent outside PPO, joined to the phases of the iterations.
        judge: whose verdicts the tables count.
        judge_agreement: with labelled answers, as `evaluation.agreement` measured it.
        win_rate: as `run.assessment.win_rate`.
        made_of: `card.made_of`, and why the run ended early, if it did.
    """
    constrained = cost_budget is not None or max_unsafe_share is not None
    seconds = {**training.seconds_by_phase, **stage_seconds}
    results = {
        "base": None if base is None else base.to_json(),
        "aligned": None if aligned is None else aligned.to_json(),
        "difference": None if difference is None else difference.to_json(),
        "cost_budget": cost_budget,
        "max_unsafe_share": max_unsafe_share,
        **_of_training(training, constrained=constrained),
        "seconds_by_phase": {phase: round(value, 3) for phase, value in seconds.items()},
        "training": {name: _significant(value) for name, value in training.figures.items()},
        "judge": judge,
        "judge_agreement": list(judge_agreement),
        "win_rate": None if win_rate is None else dict(win_rate),
        **(made_of or {}),
        "versions": dict(versions),
        "seed": seed,
    }
    write_whole(path, json.dumps(results, indent=2, allow_nan=False) + "\n")


def _of_training(training: TrainingSummary, *, constrained: bool) -> dict[str, Any]:
    return {
        "parity_gap_nats_max": _significant(training.parity_gap_nats_max),
        "cost_mean": _significant(training.cost_mean),
        "unsafe_share": _significant(training.unsafe_share),
        "multiplier_final": _significant(training.multiplier_final) if constrained else None,
        "iterations": training.iterations,
        "kl_final": _significant(training.kl_final),
        "mixture": {name: _significant(share) for name, share in training.mixture.items()},
    }


def _significant(value: float | None) -> float | None:
    """Six significant digits; null for a number that is not finite."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def write_outcome(
    config: TrainConfig | FitConfig,
    run: Path,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    training: TrainingSummary,
    cost_budget: float | None,
    max_unsafe_share: float | None = None,
    stopped_early: str = "",
) -> None:
    """Results, samples and report of what `base.json` and `aligned.json` hold; without prompts of
    the training alone.

    Args: stopped_early: why, for people; empty of a run that went to its end.
    """
    base = aligned = gap = wins = None
    if prompts:
        before, after = (read_assessment(run / f"{n}.json", prompts) for n in ("base", "aligned"))
        rows = sample_rows({"base": before, "aligned": after})
        write_whole(run / SAMPLES_FILE, "".join(json.dumps(row) + "\n" for row in rows))
        base, aligned, gap = before.table, after.table, difference(before, after)
        wins = win_rate_of(before, after, judge)
    write_results(
        run / "results.json",
        base=base,
        aligned=aligned,
        difference=gap,
        training=training,
        cost_budget=cost_budget,
        max_unsafe_share=max_unsafe_share,
        stage_seconds=stage_seconds(run),
        judge=judge.name if prompts else "",
        versions=installed_versions(),
        seed=config.seed,
        judge_agreement=[
            measured
            for measured in map(read_agreement, map(Path, config.judge.agreement))
            # `evaluate` may have named another.
            if measured["judge_name"] in (judge.name, _source(judge, measured["verdict"]).name)
        ],
        win_rate=wins,
        made_of={"stopped_early": stopped_early or None, **made_of(config.data.policy, run)},
    )
    say(f"report: {write_report(run)}")


def _source(judge: Judge, verdict: str) -> Judge:
    return judge.source_of(verdict) if isinstance(judge, CombinedJudge) else judge
