"""The files of a run folder as one record. Only what is there: the page says what is not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from equilibrate.config.base import COST_METRICS, SHARE_METRICS
from equilibrate.errors import DataError
from equilibrate.evaluation import EvaluationTable
from equilibrate.run.folder import INPUTS_FILE
from equilibrate.run.sinks import (
    EVALUATIONS_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    TIMINGS_FILE,
    Row,
    read_rows,
)

RESULTS_FILE = "results.json"
CONFIG_FILE = "config.yaml"
LAST_ITERATIONS = 20
"""Iterations at the end of a run whose cost is averaged: one is too noisy to judge a budget by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    name: str
    results: Mapping[str, Any]
    """Empty before the evaluation at the end of a run."""
    base: EvaluationTable | None
    aligned: EvaluationTable | None
    difference: EvaluationTable | None
    metrics: list[Row]
    timings: list[Row]
    evaluations: list[tuple[int, EvaluationTable]]
    samples: list[Row]
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """What each input held when the run began, as a hash by its key; none of the built-in world."""

    @property
    def end(self) -> int | None:
        """Iteration that a finished run reached; None of another."""
        if "seed" not in self.results:
            return None
        done = self.results.get("iterations")
        if done is None and self.metrics:  # of a run from before they were written down
            done = self.metrics[-1]["iteration"] + 1
        return None if done is None else int(done)

    @property
    def cost_name(self) -> str:
        """The metric that a budget bounds."""
        return COST_METRICS[self._scope]

    @property
    def share_name(self) -> str:
        """The metric that `max_unsafe_share` bounds."""
        return SHARE_METRICS[self._scope]

    @property
    def _scope(self) -> str:
        return str((self.config.get("constraint") or {}).get("scope", "safety"))

    @property
    def multiplier_cap(self) -> float | None:
        """None where the constraint is off."""
        cap = (self.config.get("constraint") or {}).get("max")
        return None if cap is None else float(cap)

    @property
    def bounded(self) -> tuple[str, float] | None:
        """The metric that is bounded, and its bound, as `MultiplierConfig.bounded`; None where the
        constraint is off."""
        constraint = self.config.get("constraint") or {}
        if (share := constraint.get("max_unsafe_share")) is not None:
            return self.share_name, float(share)
        budget = self.results.get("cost_budget", constraint.get("budget"))
        return None if budget is None else (self.cost_name, float(budget))

    def bound_of(self, metric: str) -> float | None:
        """None where this metric is not the one that is bounded."""
        return self.bounded[1] if self.bounded and self.bounded[0] == metric else None


def read_run(folder: Path) -> RunRecord:
    """Raises: DataError if the folder is no run, or names the file that cannot be read."""
    known = [folder / RESULTS_FILE, folder / METRICS_FILE]
    if not any(path.exists() for path in known):
        raise DataError(
            f"run folder ({folder}) must hold {RESULTS_FILE} or {METRICS_FILE}; "
            "give the folder that `train` wrote"
        )
    results = _mapping(folder / RESULTS_FILE, json.loads)
    tables = {
        key: EvaluationTable.from_json(results[key])
        for key in ("base", "aligned", "difference")
        if results.get(key)
    }
    # An iteration that was evaluated again after a resume counts once, with its last table.
    evaluations = {
        row["iteration"]: EvaluationTable.from_json(row["table"])
        for row in read_rows(folder / EVALUATIONS_FILE)
    }
    return RunRecord(
        name=folder.resolve().name,
        results=results,
        base=tables.get("base"),
        aligned=tables.get("aligned"),
        difference=tables.get("difference"),
        metrics=read_rows(folder / METRICS_FILE),
        timings=read_rows(folder / TIMINGS_FILE),
        evaluations=sorted(evaluations.items()),
        samples=read_rows(folder / SAMPLES_FILE),
        config=_mapping(folder / CONFIG_FILE, yaml.safe_load),
        inputs=_mapping(folder / INPUTS_FILE, json.loads),
    )


def numbers(rows: Sequence[Row], name: str) -> list[float]:
    """A metric of these iterations, where it was measured."""
    return [float(row[name]) for row in rows if row.get(name) is not None]


def shares_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The realised mixture of classes in a row of metrics, by class."""
    found = ((name.removeprefix("mixture_"), share) for name, share in row.items()
             if name.startswith("mixture_"))  # fmt: skip
    return {name: share for name, share in found if share is not None}


def _mapping(path: Path, parse: Any) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        content = parse(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} must be readable: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} ({type(content).__name__}) must hold a mapping")
    return content
