"""Markdown and JSON of a whole run: rows against the simulator first, predictions after them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.simulation.calibrate import Fit
from benchmarks.simulation.predict import Prediction
from benchmarks.simulation.published import Row, Unmodelled
from equilibrate.planner.events import Simulated

TOLERANCE = 0.25
NEEDED = 6
"""Published step times that the simulator must hit before its predictions mean anything."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A published row and what the simulator makes of it; errors are simulated / published - 1."""

    row: Row
    simulated: Simulated
    left_out_error: float | None
    """When the row itself is not fitted on; None for rows that never are."""

    @property
    def error(self) -> float:
        return self.simulated.step / self.row.step_seconds - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    sigma: float
    seed: int
    fits: Mapping[str, Fit]
    compared: Sequence[Compared]
    held_out: Sequence[Compared]
    not_modelled: Sequence[Unmodelled]
    sources: Mapping[str, Mapping[str, str]]
    predictions: Mapping[str, Sequence[Prediction]]

    @property
    def num_matched(self) -> int:
        return sum(abs(item.error) <= TOLERANCE for item in self.compared)

    @property
    def num_matched_left_out(self) -> int:
        errors = [item.left_out_error for item in self.compared]
        return sum(error is not None and abs(error) <= TOLERANCE for error in errors)


def markdown(run: Run) -> str:
    parts = [_verdict(run), _rows(run), _constants(run), _held_out(run), _not_modelled(run)]
    for title, predictions in run.predictions.items():
        parts += [f"### Predicted: {title}", _predictions(predictions)]
    return "\n\n".join([*parts, _sources(run)])


def as_json(run: Run) -> dict[str, Any]:
    return {
        "tolerance": TOLERANCE,
        "matched": run.num_matched,
        "matched_left_out": run.num_matched_left_out,
        "sigma": run.sigma,
        "seed": run.seed,
        "constants": {name: asdict(fit.efficiency) for name, fit in run.fits.items()},
        "rows": [_compared_json(item) for item in run.compared],
        "held_out": [_compared_json(item) for item in run.held_out],
        "not_modelled": [asdict(item) for item in run.not_modelled],
        "sources": dict(run.sources),
        "predictions": {
            title: [asdict(item) for item in items] for title, items in run.predictions.items()
        },
    }


def _compared_json(item: Compared) -> dict[str, Any]:
    return {
        "row": item.row.name,
        "source": item.row.source,
        "published_seconds": item.row.step_seconds,
        "simulated": asdict(item.simulated),
        "error": item.error,
        "left_out_error": item.left_out_error,
    }


def _verdict(run: Run) -> str:
    total = len(run.compared)
    text = (
        f"Within {TOLERANCE:.0%}: {run.num_matched} of {total} published step times with all rows "
        f"fitted, {run.num_matched_left_out} of {total} when the row itself is left out."
    )
    if run.num_matched < NEEDED:
        text = (
            f"**Fewer than {NEEDED} published step times are matched: the predictions below are "
            f"not to be relied on.**\n\n{text}"
        )
    return text


def _rows(run: Run) -> str:
    head = "row|source|published|simulated|error|left out|rollout|score|update|sync"
    return _table(head, [_row_cells(item) for item in run.compared])


def _row_cells(item: Compared) -> list[str]:
    part = item.simulated
    left_out = "-" if item.left_out_error is None else f"{item.left_out_error:+.0%}"
    seconds = [part.rollout, part.scoring, part.update, part.sync]
    return [
        item.row.name,
        item.row.source,
        _seconds(item.row.step_seconds),
        _seconds(part.step),
        f"{item.error:+.0%}",
        left_out,
        *[_seconds(value) for value in seconds],
    ]


def _constants(run: Run) -> str:
    head = "constant|" + "|".join(run.fits)
    fitted = [asdict(fit.efficiency) for fit in run.fits.values()]
    rows = [[name, *[f"{values[name]:.2g}" for values in fitted]] for name in fitted[0]]
    spreads = [
        ["typical error, fitted", *[f"{_spread(fit.errors):.0%}" for fit in run.fits.values()]],
        [
            "typical error, left out",
            *[f"{_spread(fit.left_out_errors):.0%}" for fit in run.fits.values()],
        ],
    ]
    return _table(head, rows + spreads)


def _spread(errors: Iterable[float]) -> float:
    """Root mean square of ln(simulated / published), as a fraction."""
    logs = [math.log1p(error) for error in errors]
    return math.expm1(math.sqrt(sum(log**2 for log in logs) / len(logs)))


def _held_out(run: Run) -> str:
    head = "never fitted on|source|published|simulated|error|left out|rollout|score|update|sync"
    return _table(head, [_row_cells(item) for item in run.held_out])


def _not_modelled(run: Run) -> str:
    rows = [[i.what, i.source, i.step_seconds or "-", i.missing] for i in run.not_modelled]
    return _table("not modelled|source|published|what is missing", rows)


def _predictions(predictions: Sequence[Prediction]) -> str:
    head = "GPUs|rollouts|colocated, lag 0|split, lag 1|rollout : training|gain|rollouts/s per GPU"
    return _table(head, [_prediction_cells(item) for item in predictions])


def _prediction_cells(item: Prediction) -> list[str]:
    cells = [str(item.num_gpus), str(item.rollouts)]
    cells.append(_seconds(item.colocated.step) if item.colocated else "does not fit")
    if item.split is None or item.rollout_gpus is None:
        cells += ["does not fit", "-", "-"]
    else:
        ratio = f"{item.rollout_gpus} : {item.num_gpus - item.rollout_gpus}"
        gain = f"{item.colocated.step / item.split.step:.2f}" if item.colocated else "-"
        cells += [_seconds(item.split.step), ratio, gain]
    steps = [part.step for part in (item.colocated, item.split) if part]
    rate = f"{item.rollouts / min(steps) / item.num_gpus:.2f}" if steps else "-"
    return [*cells, rate]


def _sources(run: Run) -> str:
    return "\n".join(f"- `{name}`: {s['title']}, <{s['url']}>" for name, s in run.sources.items())


def _table(head: str, rows: Iterable[Sequence[str]]) -> str:
    names = head.split("|")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}"
