"""Two settings over the same seeds, as one Markdown table: what the second changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from equilibrate.errors import DataError
from equilibrate.evaluation import Estimate, mean_interval
from equilibrate.report.headline import signed
from equilibrate.report.pooled import GROUPS, differing_settings, records_of


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
        cells = [list(table[group]) for side in aligned for table in side]
        if any(other != cells[0] for other in cells):
            raise DataError(f"all runs must have the same cells of {group}, got {cells}")
        lines += [
            _line(f"{title}, {cell}", [[table[group][cell] for table in side] for side in aligned])
            for cell in cells[0]
        ]
    malformed = [[table["malformed"] for table in side] for side in aligned]
    return "\n".join([*lines, _line("malformed answers", malformed)])


def _line(title: str, figures: Sequence[Sequence[Mapping[str, float]]]) -> str:
    first, second = ([figure["mean"] for figure in side] for side in figures)
    gaps = [after - before for before, after in zip(first, second, strict=True)]
    means = " | ".join(f"{100 * fmean(side):.1f}" for side in (first, second))
    return f"| {title} | {means} | {_shown(mean_interval(gaps))} | {_joined(gaps)} |"


def _shown(gap: Estimate) -> str:
    if gap.n < 2:
        return signed(gap.mean)
    return f"{signed(gap.mean)} [{signed(gap.low)}, {signed(gap.high)}]"


def _joined(gaps: Sequence[float]) -> str:
    return " / ".join(map(signed, gaps))
