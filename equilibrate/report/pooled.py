"""Several runs of one setting, as one Markdown table: means with intervals over their seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equilibrate.config_files import load_run_config
from equilibrate.errors import DataError
from equilibrate.evaluation import pool_over_seeds

_GROUPS = {
    "harmful_compliance": "harmful answers",
    "over_refusal": "over-refusal",
    "helpfulness": "helpfulness",
}
_TRAINING = {
    "cost_mean": ("cost, last iterations", ".2f"),
    "multiplier_final": ("lambda at the end", ".2f"),
    "parity_gap_nats_max": ("largest parity gap, nats", ".1e"),
}


def pooled_markdown(runs: Sequence[Path]) -> str:
    """The table of what `results.json` of each run holds.

    Base and aligned are means over runs with 95 % t-intervals; the last column has every run.
    Raises: DataError if a run has no results, two have the same seed, or settings or cells differ.
    """
    results = [_read(run) for run in runs]
    seeds = [result["seed"] for result in results]
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"runs ({', '.join(map(str, runs))}) must differ in their seed, got {seeds}; a run "
            "counted twice makes the intervals too narrow"
        )
    _require_same_settings(runs)
    pooled = pool_over_seeds(results)
    lines = [
        f"| mean of {len(runs)} runs, 95 % interval | base | aligned "
        f"| aligned, seeds {_joined(seeds)} |",
        "|---|---|---|---|",
    ]
    for group, title in _GROUPS.items():
        for cell in pooled["base"][group]:
            lines.append(_line(f"{title}, {cell}", (group, cell), pooled, results))
    lines.append(_line("malformed answers", ("malformed",), pooled, results))
    for key, (title, spec) in _TRAINING.items():
        values = [result[key] for result in results]
        shown = _joined(["-" if value is None else format(value, spec) for value in values])
        lines.append(f"| {title} | | | {shown} |")
    return "\n".join(lines)


def _read(run: Path) -> dict[str, Any]:
    path = run / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: only a finished and evaluated run "
            "has results; finish it with `python -m equilibrate train`"
        ) from None
    return results


def _require_same_settings(runs: Sequence[Path]) -> None:
    """Seeds, folders and what they hold may differ."""
    first, *others = (_settings(run) for run in runs)
    for run, settings in zip(runs[1:], others, strict=True):
        if different := sorted(key for key in first if first[key] != settings[key]):
            raise DataError(
                f"{run} must have the settings of {runs[0]}, but they differ in "
                f"{', '.join(different)}; pool runs that differ in their seeds alone"
            )


def _settings(run: Path) -> dict[str, Any]:
    settings = load_run_config(run).model_dump(exclude={"output": True, "seed": True, "data": True})
    del settings["sandbox"]["seed"]
    return settings


def _line(
    title: str,
    path: tuple[str, ...],
    pooled: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> str:
    each = _joined([f"{100 * _at(result['aligned'], path)['mean']:.1f}" for result in results])
    base, aligned = (_percent(_at(pooled[stage], path)) for stage in ("base", "aligned"))
    return f"| {title} | {base} | {aligned} | {each} |"


def _at(table: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, float]:
    value: Any = table
    for key in path:
        value = value[key]
    figure: Mapping[str, float] = value
    return figure


def _percent(figure: Mapping[str, float]) -> str:
    mean, low, high = (100 * figure[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _joined(values: Sequence[object]) -> str:
    return " / ".join(map(str, values))
