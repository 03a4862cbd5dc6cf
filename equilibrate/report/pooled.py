"""Several runs as one Markdown table: means over seeds of one setting, or what another changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from equilibrate.errors import DataError
from equilibrate.evaluation import Estimate, mean_interval, pool_over_seeds
from equilibrate.report.headline import percent, signed
from equilibrate.report.inputs import RESULTS_FILE, RunRecord, read_run

GROUPS = {
    "harmful_compliance": "harmful answers",
    "harm_by_part": "harmful answers",
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
    results = [record.results for record in records_of(runs)]
    seeds = [result["seed"] for result in results]
    pooled = pool_over_seeds(results)
    lines = [
        f"| mean of {len(runs)} runs, 95 % interval | base | aligned "
        f"| aligned, seeds {_joined(seeds)} |",
        "|---|---|---|---|",
    ]
    for group, title in GROUPS.items():
        for cell in pooled["base"][group]:
            lines.append(_line(f"{title}, {cell}", (group, cell), pooled, results))
    lines.append(_line("malformed answers", ("malformed",), pooled, results))
    lost = {stage: pooled[stage]["unreadable"] for stage in ("base", "aligned")}
    if any(lost.values()):
        each = _joined([str(result["aligned"].get("unreadable", 0)) for result in results])
        title = "verdicts that could not be read, summed"
        lines.append(f"| {title} | {lost['base']} | {lost['aligned']} | {each} |")
    lines += _win_lines(results)
    for key, (title, spec) in _TRAINING.items():
        values = [result[key] for result in results]
        shown = _joined(["-" if value is None else format(value, spec) for value in values])
        lines.append(f"| {title} | | | {shown} |")
    return "\n".join(lines)


def records_of(runs: Sequence[Path]) -> list[RunRecord]:
    """Finished and evaluated runs of one setting.

    Raises: as `pooled_markdown`.
    """
    records = [read_run(run) for run in runs]
    for run, record in zip(runs, records, strict=True):
        if record.aligned is None:
            lack = "measures no policy" if record.results else "is missing"
            raise DataError(
                f"{run / RESULTS_FILE} {lack}: only a finished and evaluated run has results; "
                "finish it with `python -m equilibrate train`"
            )
    seeds = [record.results["seed"] for record in records]
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"runs ({', '.join(map(str, runs))}) must differ in their seed, got {seeds}; a run "
            "counted twice makes the intervals too narrow"
        )
    for run, record in zip(runs[1:], records[1:], strict=True):
        if different := differing_settings(records[0].config, record.config):
            raise DataError(
                f"{run} must have the settings of {runs[0]}, but they differ in "
                f"{', '.join(different)}; pool runs that differ in their seeds alone"
            )
    return records


def differing_settings(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Both values of each setting, by its key path; seeds, folders and their contents left out."""
    one, other = (_flat(_settings(config)) for config in (first, second))
    return {
        key: (one.get(key), other.get(key))
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    }


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: config[key] for key in config.keys() - {"output", "seed", "data"}}
    sandbox = settings.pop("sandbox", {})
    return settings | {
        "sandbox": {key: sandbox[key] for key in sandbox.keys() - {"seed", "policy"}}
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        flat |= _flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat


def _line(
    title: str,
    path: tuple[str, ...],
    pooled: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> str:
    each = _joined(
        [f"{100 * _figure_at(result['aligned'], path)['mean']:.1f}" for result in results]
    )
    base, aligned = (_interval(_figure_at(pooled[stage], path)) for stage in ("base", "aligned"))
    return f"| {title} | {base} | {aligned} | {each} |"


def _win_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """None unless every run has the rates of one judge: older results have none."""
    told = [result.get("win_rate") or {"judge": "", "cells": {}} for result in results]
    if len({one["judge"] for one in told}) > 1:
        return []
    lines = []
    for cell in told[0]["cells"]:
        rates = [one["cells"][cell]["mean"] for one in told]
        whole = mean_interval(rates, lower=0.0, upper=1.0).to_json()
        each = _joined([f"{100 * rate:.1f}" for rate in rates])
        lines.append(f"| win rate by {told[0]['judge']}, {cell} | | {_interval(whole)} | {each} |")
    return lines


def _figure_at(table: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, float]:
    value: Any = table
    for key in path:
        value = value[key]
    figure: Mapping[str, float] = value
    return figure


def _interval(figure: Mapping[str, float]) -> str:
    return f"{percent(figure['mean'])} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _joined(values: Sequence[object]) -> str:
    return " / ".join(map(str, values))


def paired_markdown(first: Sequence[Path], second: Sequence[Path]) -> str:
    """Aligned figures of both, and their difference with a 95 % t-interval over paired seeds.

    What a seed shares, its world and often its base and scorers, cancels in the difference.
    Raises: DataError as `pooled_markdown` for each of the two; if they have other seeds or cells.
    """
    records = [records_of(runs) for runs in (first, second)]
    both = [{record.results["seed"]: record.results for record in side} for side in records]
    seeds = sorted(both[0])
    if seeds != sorted(both[1]):
        raise DataError(
            f"runs on both sides must have the same seeds, got {seeds} and {sorted(both[1])}; "
            "leave out what has no partner"
        )
    configs = [side[0].config for side in records]
    changed = ", ".join(
        f"{key} {one} -> {other}" for key, (one, other) in differing_settings(*configs).items()
    )
    lines = [
        f"Changed: {changed or 'nothing'}. Seeds {' / '.join(map(str, seeds))}.",
        "",
        "| aligned, % | first | second | second - first [95 %] | by seed |",
        "|---|---|---|---|---|",
    ]
    aligned = [[by_seed[seed]["aligned"] for seed in seeds] for by_seed in both]
    for group, title in GROUPS.items():
        cells = [list(table.get(group, ())) for side in aligned for table in side]
        if any(other != cells[0] for other in cells):
            raise DataError(f"all runs must have the same cells of {group}, got {cells}")
        lines += [
            _paired_line(
                f"{title}, {cell}", [[table[group][cell] for table in side] for side in aligned]
            )
            for cell in cells[0]
        ]
    malformed = [[table["malformed"] for table in side] for side in aligned]
    return "\n".join([*lines, _paired_line("malformed answers", malformed)])


def _paired_line(title: str, figures: Sequence[Sequence[Mapping[str, float]]]) -> str:
    first, second = ([figure["mean"] for figure in side] for side in figures)
    gaps = [after - before for before, after in zip(first, second, strict=True)]
    means = " | ".join(f"{100 * fmean(side):.1f}" for side in (first, second))
    return f"| {title} | {means} | {_shown_gap(mean_interval(gaps))} | {_joined_gaps(gaps)} |"


def _shown_gap(gap: Estimate) -> str:
    if gap.n < 2:
        return signed(gap.mean)
    return f"{signed(gap.mean)} [{signed(gap.low)}, {signed(gap.high)}]"


def _joined_gaps(gaps: Sequence[float]) -> str:
    return " / ".join(map(signed, gaps))
