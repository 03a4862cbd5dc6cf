"""The record of a finished run: all that verdicts, tables and plots are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, get_args

from equilibrate.config.study import Kind
from equilibrate.errors import DataError
from equilibrate.evaluation import EvaluationTable
from equilibrate.study.grid import START, PlannedRun

ByArm = Mapping[str, Mapping[int, "RunResult"]]
"""arm -> seed -> result; every arm has an entry, if only an empty one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished run leaves behind. Which arms it belongs to is the study's business."""

    key: str
    """`run_key` of kind, config and inputs when the run was made."""
    kind: Kind
    seed: int
    config: Mapping[str, Any]
    """Resolved settings, as plain JSON."""
    settings_format: int
    """The format of `config`, see `config.formats`."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What the inputs held whose paths `config` gives, by key; none for the built-in world."""
    base: EvaluationTable
    aligned: EvaluationTable
    training: Mapping[str, float]
    """Numbers of the training itself, for example kept_fraction; nan where there is none."""
    seconds: float
    """Wall clock of the whole run."""
    versions: Mapping[str, str]
    judge: str
    commit: str | None
    """Of the code, as `report.origin.commit` says it; None where it was not recorded."""
    machine: Mapping[str, Any] | None
    """What `report.origin.machine` says; None where it was not recorded."""

    def to_json(self) -> dict[str, Any]:
        """Training numbers with six significant digits, seconds with three decimals."""
        return {
            "key": self.key,
            "kind": self.kind,
            "seed": self.seed,
            "judge": self.judge,
            "seconds": round(self.seconds, 3),
            "training": {name: _significant(value) for name, value in self.training.items()},
            "base": self.base.to_json(),
            "aligned": self.aligned.to_json(),
            "versions": dict(self.versions),
            "commit": self.commit,
            "machine": None if self.machine is None else dict(self.machine),
            "settings_format": self.settings_format,
            **({"inputs": dict(self.inputs)} if self.inputs else {}),
            "config": dict(self.config),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Raises: DataError if a part is missing or is of another kind."""
        missing = [part.name for part in fields(cls) if part.name not in {"inputs", *content}]
        if missing:
            raise DataError(f"result must hold {', '.join(missing)}")
        if content["kind"] not in get_args(Kind):
            raise DataError(
                f"kind ({content['kind']!r}) must be one of {', '.join(get_args(Kind))}"
            )
        try:
            return cls(
                key=str(content["key"]),
                kind=content["kind"],
                seed=int(content["seed"]),
                config=dict(content["config"]),
                base=EvaluationTable.from_json(content["base"]),
                aligned=EvaluationTable.from_json(content["aligned"]),
                training={
                    name: math.nan if value is None else float(value)
                    for name, value in content["training"].items()
                },
                seconds=float(content["seconds"]),
                versions=dict(content["versions"]),
                judge=str(content["judge"]),
                commit=None if content["commit"] is None else str(content["commit"]),
                machine=None if content["machine"] is None else dict(content["machine"]),
                settings_format=int(content["settings_format"]),
                inputs=dict(content.get("inputs", {})),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"result must hold what `write_result` writes ({error})") from error


def results_by_arm(
    runs: Sequence[PlannedRun], results: Mapping[str, RunResult]
) -> dict[str, dict[int, RunResult]]:
    """Finished results of each arm by seed; results of no planned run are left out."""
    by_arm: dict[str, dict[int, RunResult]] = {}
    for run in runs:
        for arm in run.arms:
            seeds = by_arm.setdefault(arm, {})
            if run.key in results:
                seeds[run.seed] = results[run.key]
    return by_arm


def seeds_with_several_starts(arms: Sequence[str], by_arm: ByArm) -> list[int]:
    """Seeds whose results in these arms do not share one table of what they started from.

    The base model of a seed differs from one kind of processor to another, for example; and what
    two starts differ by is part of a gap between them.
    """
    # Arms that go on from another arm's policy are meant to differ from those that do not.
    starts: dict[tuple[int, str], list[EvaluationTable]] = {}
    for arm in arms:
        for seed, result in by_arm[arm].items():
            start = result.inputs.get(START, "")
            starts.setdefault((seed, start), []).append(result.base)
    several = {seed for (seed, _), bases in starts.items() if any(b != bases[0] for b in bases)}
    return sorted(several)


def missing_runs(runs: Sequence[PlannedRun], results: Mapping[str, RunResult]) -> list[PlannedRun]:
    """Runs without a result, in the order in which they are to be made."""
    return [run for run in runs if run.key not in results]


def _significant(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
