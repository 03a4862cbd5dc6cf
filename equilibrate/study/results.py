"""One small JSON file per finished run: all that verdicts, tables and plots are made from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args

from equilibrate.config.study import Kind
from equilibrate.errors import ConfigError, DataError
from equilibrate.evaluation import EvaluationTable
from equilibrate.run.sinks import write_whole
from equilibrate.study.grid import PlannedRun, Resolve, run_key

ByArm = Mapping[str, Mapping[int, "RunResult"]]
"""arm -> seed -> result; every arm has an entry, if only an empty one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished run leaves behind. Which arms it belongs to is the study's business."""

    key: str
    """`run_key` of kind and config when the run was made, and the file's name."""
    kind: Kind
    seed: int
    config: Mapping[str, Any]
    """Resolved settings, as plain JSON."""
    base: EvaluationTable
    aligned: EvaluationTable
    training: Mapping[str, float]
    """Numbers of the training itself, for example kept_fraction; nan where there is none."""
    seconds: float
    """Wall clock of the whole run."""
    versions: Mapping[str, str]
    judge: str

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
            "config": dict(self.config),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Raises: DataError if a part is missing or is of another kind."""
        missing = [field.name for field in fields(cls) if field.name not in content]
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
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"result must hold what `write_result` writes ({error})") from error


def write_result(folder: Path, result: RunResult) -> Path:
    """Write `<key>.json` whole or not at all, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.key}.json"
    write_whole(path, json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")
    return path


def read_results(folder: Path, resolve: Resolve) -> dict[str, RunResult]:
    """Every result in the folder by the key that its settings have today.

    Settings that were added since a run count at their defaults, which must mean what was done
    before there was a choice: so its result is found again. A missing folder has no results.

    Raises: DataError naming a file that is broken or does not have its key as its name.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise DataError(f"result must be a mapping, not a {type(content).__name__}")
            result = RunResult.from_json(content)
        except ValueError as error:
            raise DataError(f"{path}: {error}; delete it, and the study runs it again") from error
        if path.stem != result.key:
            raise DataError(
                f"{path}: its name must be its key ({result.key}); "
                f"rename it to {result.key}.json or delete it"
            )
        key = _key_today(result, resolve)
        # One that was made under today's settings wins over an older one that means the same.
        if key not in results or result.key == key:
            results[key] = result
    return results


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
    starts: dict[int, list[EvaluationTable]] = {}
    for arm in arms:
        for seed, result in by_arm[arm].items():
            starts.setdefault(seed, []).append(result.base)
    return sorted(seed for seed, bases in starts.items() if any(b != bases[0] for b in bases))


def missing_runs(runs: Sequence[PlannedRun], results: Mapping[str, RunResult]) -> list[PlannedRun]:
    """Runs without a result, in the order in which they are to be made."""
    return [run for run in runs if run.key not in results]


def _key_today(result: RunResult, resolve: Resolve) -> str:
    try:
        return run_key(result.kind, resolve(result.kind, result.config))
    except ConfigError:
        # Settings that are refused today: no planned run can ask for this result.
        return result.key


def _significant(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
