"""The files of a run folder as one record. Only what is there: the page says what is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from equilibrate.errors import DataError
from equilibrate.evaluation import EvaluationTable
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

    @property
    def cost_name(self) -> str:
        """The metric that the budget bounds."""
        return "cost" if self._scope == "all" else "safety_cost"

    @property
    def share_name(self) -> str:
        """The metric that `max_unsafe_share` bounds."""
        return "unsafe_fraction_all" if self._scope == "all" else "unsafe_fraction"

    @property
    def _scope(self) -> str:
        return str((self.config.get("constraint") or {}).get("scope", "safety"))

    @property
    def max_unsafe_share(self) -> float | None:
        """None where the mean cost is bounded, or nothing."""
        share = (self.config.get("constraint") or {}).get("max_unsafe_share")
        return None if share is None else float(share)

    @property
    def multiplier_cap(self) -> float | None:
        """None where the constraint is off."""
        cap = (self.config.get("constraint") or {}).get("max")
        return None if cap is None else float(cap)

    @property
    def budget(self) -> float | None:
        if "cost_budget" in self.results:
            budget = self.results["cost_budget"]
        else:
            budget = (self.config.get("constraint") or {}).get("budget")
        return None if budget is None else float(budget)


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
    )


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
