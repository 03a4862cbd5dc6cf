"""One self-contained page: no network, every text of a model escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from equilibrate.errors import ResourceError
from equilibrate.report.figures import all_figures, split_seconds
from equilibrate.report.headline import headline_cards, headline_groups, percent, signed
from equilibrate.report.inputs import RunRecord, read_run

REPORT_FILE = "report.html"
MAX_SAMPLES = 3000
"""Answers in the browser of samples; more would make the page slow to open."""


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises: DataError if the folder is no run or holds a broken file, ResourceError without plotly.
    """
    record = read_run(run_folder)
    path = run_folder / REPORT_FILE
    path.write_text(render(record), encoding="utf-8")
    return path


def render(record: RunRecord) -> str:
    """The page as text."""
    figures = {name: figure for name, figure in all_figures(record).items() if figure is not None}
    samples = record.samples[:MAX_SAMPLES]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("equilibrate.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "signed": signed}
    return environment.get_template("page.html.j2").render(
        record=record,
        cards=headline_cards(record),
        groups=headline_groups(record),
        recorded=set(figures),
        figures_json=_script_json(figures),
        samples_json=_script_json(samples),
        num_samples=len(samples),
        num_samples_left_out=len(record.samples) - len(samples),
        num_iterations=len(record.metrics),
        settings=list(_leaves(record.config)),
        environment={**record.results.get("versions", {}), **dict(_leaves(record.environment))},
        seconds=_seconds(record),
        style=_own("style.css"),
        script=_own("page.js"),
        plotly=_plotly() if figures else "",
    )


def _plotly() -> Markup:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ResourceError(
            "the report needs plotly, which is not installed; run pip install 'equilibrate[report]'"
        ) from error
    return Markup(get_plotlyjs())


def _own(name: str) -> Markup:
    return Markup(resources.files("equilibrate.report").joinpath(name).read_text("utf-8"))


def _script_json(value: Any) -> Markup:
    """JSON for a script element: no text in it can end the element or start a comment."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path and value of every setting, as an override would be written."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _seconds(record: RunRecord) -> list[tuple[str, float, float]]:
    """Phase, seconds and share of the longest phase, longest first."""
    split = split_seconds(record.results.get("seconds_by_phase") or {})
    phases = {name: value for name, value in split.items() if value > 0}
    longest = max(phases.values(), default=0.0)
    return [
        (name, value, value / longest)
        for name, value in sorted(phases.items(), key=lambda phase: -phase[1])
    ]
