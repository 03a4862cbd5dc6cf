"""The plots of a study, as plain Plotly figures. Colours are names of the page's CSS variables.

The names of points are placed so that none covers another (`place_labels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean
from typing import Any

from equilibrate.config.study import Question, StudyConfig
from equilibrate.evaluation import Estimate, pareto_front
from equilibrate.report.figures import Figure, Trace
from equilibrate.study.figures import (
    figure_title,
    front_point,
    is_share,
    over_seeds,
    show_figure,
)
from equilibrate.study.results import ByArm

COLORS = ("--blue", "--orange", "--green", "--purple", "--red", "--sky")
DASHES = ("solid", "dash", "dot")
DEFAULT_AXES = ("harm", "helpfulness.GENERAL")
"""Of a question that draws fronts and claims nothing about them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    key: str
    """Unique in the page."""
    title: str
    caption: str
    figure: Figure | None
    """None where nothing is measured yet."""
    is_wide: bool = False
    """Needs the width of the page for its names."""


def question_plots(study: StudyConfig, question: Question, by_arm: ByArm) -> list[Plot]:
    """A plot over x for each figure if the question has lines, then one for each kind of front."""
    over_x = [
        Plot(
            key=f"{question.id}:{name}",
            title=figure_title(name),
            caption="Mean over seeds; the band is its 95 % t-interval.",
            figure=_curves(study, question, name, by_arm),
        )
        for name in (question.figures if question.lines else ())
    ]
    claimed = dict.fromkeys(claim.front for claim in question.claims if claim.front is not None)
    fronts = [
        Plot(
            key=f"{question.id}:{'/'.join(axes)}",
            title=f"{figure_title(axes[0])} against {_value_title(axes[1])}",
            caption="Large: means over seeds and what no other of them beats. Faint: single seeds. "
            "Up and to the left is better.",
            figure=_fronts(study, question, axes, by_arm),
            is_wide=True,
        )
        for axes in (claimed or (DEFAULT_AXES,))
        if question.fronts
    ]
    return [*over_x, *fronts]


def _curves(study: StudyConfig, question: Question, name: str, by_arm: ByArm) -> Figure | None:
    tickformat = ".0%" if is_share(name) else ""
    traces: list[Trace] = []
    for i, (label, arms) in enumerate(question.lines.items()):
        measured = [(study.arms[arm].x, over_seeds(by_arm[arm].values(), name)) for arm in arms]
        points = sorted(
            ((x, y) for x, y in measured if x is not None and y is not None), key=lambda p: p[0]
        )
        if points:
            traces += _curve(points, label, _pen(i), share=is_share(name))
    layout = {
        "xaxis": {"title": {"text": question.x_label}, **_ticks(study, question)},
        "yaxis": {"title": {"text": figure_title(name)}, "tickformat": tickformat},
        "showlegend": True,
        "hovermode": "x unified",
    }
    return {"data": traces, "layout": layout} if traces else None


def _ticks(study: StudyConfig, question: Question) -> dict[str, Any]:
    """A short logarithmic axis has hardly a round number on it: its ticks are the arms."""
    if not question.log_x:
        return {"type": "linear"}
    places = {study.arms[arm].x for arms in question.lines.values() for arm in arms}
    values = sorted(x for x in places if x is not None)
    return {"type": "log", "tickvals": values, "ticktext": [f"{x:g}" for x in values]}


def _curve(
    points: Sequence[tuple[float, Estimate]], label: str, pen: dict[str, Any], *, share: bool
) -> list[Trace]:
    """A band over the points with more than one seed, and the line of the means over it.

    A lone point has no band, but a bar.
    """
    wide = [(x, y) for x, y in points if y.n > 1]
    bars = {
        "array": [y.high - y.mean for _, y in points],
        "arrayminus": [y.mean - y.low for _, y in points],
        "symmetric": False,
        "visible": len(wide) == 1,
    }
    band = {
        "type": "scatter",
        "mode": "lines",
        "name": label,
        "legendgroup": label,
        "showlegend": False,
        "hoverinfo": "skip",
        "x": [x for x, _ in wide] + [x for x, _ in reversed(wide)],
        "y": [y.high for _, y in wide] + [y.low for _, y in reversed(wide)],
        "fill": "toself",
        "fillcolor": pen["color"],
        "opacity": 0.18,
        "line": {"width": 0},
    }
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label,
        "legendgroup": label,
        "x": [x for x, _ in points],
        "y": [y.mean for _, y in points],
        "text": [f"{show_figure(y, share=share)}, seeds: {y.n}" for _, y in points],
        "hovertemplate": "%{text}",
        "line": {"width": 2.2, **pen},
        "error_y": {"type": "data", "thickness": 1.5, **bars},
        "marker": {"size": 7},
    }
    return [band, line] if len(wide) > 1 else [line]


def _fronts(
    study: StudyConfig, question: Question, axes: tuple[str, str], by_arm: ByArm
) -> Figure | None:
    traces: list[Trace] = []
    for i, (label, arms) in enumerate(question.fronts.items()):
        seeds = {
            arm: {seed: front_point(result, axes) for seed, result in by_arm[arm].items()}
            for arm in arms
        }
        if any(seeds.values()):
            names = {arm: study.label_of(arm) for arm in arms}
            traces += _front(label, names, seeds, _pen(i))
    _name_means(traces)
    layout = {
        "xaxis": {"title": {"text": figure_title(axes[0])}, "tickformat": ".0%"},
        "yaxis": {"title": {"text": _value_title(axes[1])}, "tickformat": ".0%"},
        "showlegend": True,
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout} if traces else None


Points = dict[int, tuple[float, float]]
"""seed -> harm and value"""


def _front(
    label: str, names: dict[str, str], seeds: dict[str, Points], pen: dict[str, Any]
) -> list[Trace]:
    """Single seeds, the front of the means, and the means with their names."""
    singles = [(arm, seed, x, y) for arm in seeds for seed, (x, y) in seeds[arm].items()]
    means = [
        (names[arm], fmean(x for x, _ in points.values()), fmean(y for _, y in points.values()))
        for arm, points in ((arm, seeds[arm]) for arm in names)
        if points
    ]
    front = [means[i] for i in pareto_front([x for _, x, _ in means], [y for _, _, y in means])]
    common = {"type": "scatter", "legendgroup": label, "showlegend": False, "cliponaxis": False}
    return [
        {
            **common,
            "mode": "markers",
            "name": label,
            "x": [x for *_, x, _ in singles],
            "y": [y for *_, y in singles],
            "customdata": [f"{names[arm]}, seed {seed}" for arm, seed, *_ in singles],
            "marker": {"size": 6, "color": pen["color"]},
            "opacity": 0.3,
            "hovertemplate": HOVER,
        },
        {
            **common,
            "mode": "lines",
            "name": label,
            "showlegend": True,
            "x": [x for _, x, _ in front],
            "y": [y for *_, y in front],
            # Steps, because the area under them is what a claim about a front compares.
            "line": {"width": 2, "shape": "hv", **pen},
            "hoverinfo": "skip",
        },
        {
            **common,
            "mode": NAMED,
            "name": label,
            "x": [x for _, x, _ in means],
            "y": [y for *_, y in means],
            "customdata": [name for name, *_ in means],
            "marker": {"size": 11, "color": pen["color"]},
            "hovertemplate": HOVER,
        },
    ]


def _name_means(traces: Sequence[Trace]) -> None:
    """Write the names of the means beside them where there is room; hovering tells all of them."""
    means = [trace for trace in traces if trace["mode"] == NAMED]
    names = [name for trace in means for name in trace["customdata"]]
    places = iter(place_labels(_points(means), names, _points(traces)))
    for trace in means:
        own = [(name, next(places)) for name in trace["customdata"]]
        trace["text"] = [name if place else "" for name, place in own]
        trace["textposition"] = [place or "top center" for _, place in own]


def _points(traces: Sequence[Trace]) -> list[tuple[float, float]]:
    return [point for trace in traces for point in zip(trace["x"], trace["y"], strict=True)]


NAMED = "markers+text"
HOVER = "%{customdata}<br>harm %{x:.1%}<br>%{y:.1%}<extra></extra>"


def _pen(i: int) -> dict[str, Any]:
    """Colours in turn, and another dash once they are used up."""
    color, dash = COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]
    return {"color": f"var({color})", "dash": dash}


def _value_title(name: str) -> str:
    return f"no {figure_title(name)}" if name.startswith("over_refusal") else figure_title(name)


Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, right, bottom, top, in pixels."""

PLOT = (900.0, 320.0)
"""Width and height of the drawing area, in pixels, about: the page scales with its window."""
CHARACTER_WIDTH = 6.6
"""Of the page's font at 12 pixels, on average."""
CHARACTER_HEIGHT = 12.0
MARKER = 12.0
REACH = 7.0
"""From the middle of a marker to the name beside it."""
PLACES = {
    "top center": (0, 1),
    "bottom center": (0, -1),
    "middle right": (1, 0),
    "middle left": (-1, 0),
    "top right": (1, 1),
    "top left": (-1, 1),
    "bottom right": (1, -1),
    "bottom left": (-1, -1),
}
"""Plotly's words, best first, and the direction from the point."""


def place_labels(
    points: Sequence[Point], names: Sequence[str], around: Sequence[Point] = ()
) -> list[str | None]:
    """For each point the place of its name; None where any place would cover something.

    Args:
        points: to be named; earlier ones choose first. One that is not finite is not in the plot.
        around: other points of the plot: they span its axes, and may be covered.
    """
    spots = _in_pixels(points, [p for p in (*points, *around) if all(map(isfinite, p))])
    taken = [_box(x, y, MARKER, MARKER) for x, y in spots]
    return [_choose(spot, name, taken) for spot, name in zip(spots, names, strict=True)]


def _choose(spot: Point, name: str, taken: list[Box]) -> str | None:
    """The first place with room, which is taken from then on."""
    if not all(map(isfinite, spot)):
        return None
    width, height = CHARACTER_WIDTH * len(name), CHARACTER_HEIGHT
    for place, (right, up) in PLACES.items():
        x = spot[0] + right * (width / 2 + REACH)
        box = _box(x, spot[1] + up * (height / 2 + REACH), width, height)
        inside = box[0] >= 0 and box[1] <= PLOT[0]
        if inside and not any(_cover(box, other) for other in taken):
            taken.append(box)
            return place
    return None


def _in_pixels(points: Sequence[Point], all_points: Sequence[Point]) -> list[Point]:
    if not all_points:
        return [(nan, nan)] * len(points)
    columns = []
    for axis, length in enumerate(PLOT):
        low = min(point[axis] for point in all_points)
        # All at one place: any scale will do.
        span = max(point[axis] for point in all_points) - low or 1.0
        # Plotly leaves a margin of about a twentieth on each side.
        columns.append([((p[axis] - low) / span * 0.9 + 0.05) * length for p in points])
    return list(zip(*columns, strict=True))


def _box(x: float, y: float, width: float, height: float) -> Box:
    return (x - width / 2, x + width / 2, y - height / 2, y + height / 2)


def _cover(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
