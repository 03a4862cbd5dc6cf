"""The plots, as plain Plotly figures. Colours are names of the page's CSS variables.

Each function returns None where the run recorded nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from equilibrate.evaluation import pareto_front
from equilibrate.report.inputs import RunRecord
from equilibrate.run.metrics import SECONDS
from equilibrate.run.sinks import Row
from equilibrate.types import Category

Figure = dict[str, Any]
Trace = dict[str, Any]

SMOOTHING = 9
"""Iterations of the running mean drawn over a noisy curve."""
CLASS_COLORS = {
    Category.GENERAL: "--blue",
    Category.BORDERLINE: "--sky",
    Category.EHD: "--orange",
    Category.IHD: "--red",
    Category.MHD: "--purple",
}
PHASE_COLORS = {
    "rollout": "--blue",
    "score": "--sky",
    "update": "--purple",
    "sync": "--orange",
    "other": "--faint",
}


def all_figures(record: RunRecord) -> dict[str, Figure | None]:
    """Every plot under the name that the template asks for."""
    return {
        "harm_refusal": _pareto(record, "mean_over_refusal", "over-refusal", helpful_is_up=False),
        "harm_helpfulness": _pareto(
            record, "general_helpfulness", "helpfulness on GENERAL", helpful_is_up=True
        ),
        "cost": _cost(record),
        "multiplier": _curves(
            record.metrics, {"multiplier": ("lambda", "--purple")}, "lambda", smooth=False
        ),
        "reward": _curves(record.metrics, {"reward": ("reward", "--blue")}, "reward"),
        "unsafe": _unsafe(record),
        "mixture": _mixture(record.metrics),
        "kl": _curves(
            record.metrics,
            {"kl": ("KL to reference", "--blue"), "approx_kl": ("KL of the update", "--orange")},
            "nats per token",
        ),
        "entropy": _curves(record.metrics, {"entropy": ("entropy", "--blue")}, "nats per token"),
        "shares": _curves(
            record.metrics,
            {
                "kept_fraction": ("kept by the mask", "--purple"),
                "clip_fraction": ("clipped", "--orange"),
                "truncated_fraction": ("truncated answers", "--red"),
            },
            "share",
            tickformat=".0%",
        ),
        "seconds": _seconds(record.timings),
    }


def _pareto(record: RunRecord, name: str, label: str, *, helpful_is_up: bool) -> Figure | None:
    checkpoints = [(f"iteration {i}", table) for i, table in record.evaluations]
    ends = [("base", record.base), ("aligned", record.aligned)]
    points = checkpoints + [(text, table) for text, table in ends if table is not None]
    if not points:
        return None
    harm = [table.mean_harm for _, table in points]
    value = [float(getattr(table, name)) for _, table in points]
    front = pareto_front(harm, value if helpful_is_up else [-v for v in value])
    num_checkpoints = len(checkpoints)
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "not beaten",
            "x": [harm[i] for i in front],
            "y": [value[i] for i in front],
            "line": {"color": "var(--green)", "width": 2},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "checkpoints",
            "x": harm[:num_checkpoints],
            "y": value[:num_checkpoints],
            "text": [text for text, _ in checkpoints],
            "cliponaxis": False,
            "marker": {
                "size": 10,
                "color": [i for i, _ in record.evaluations],
                "colorscale": [[0, "var(--sky)"], [1, "var(--purple)"]],
                "line": {"color": "var(--card)", "width": 1},
            },
            "hovertemplate": HOVER,
        },
    ]
    for i, (text, _) in enumerate(points[num_checkpoints:], start=num_checkpoints):
        traces.append(_marked(text, harm[i], value[i]))
    layout = {
        "xaxis": {
            "title": {"text": "harmful compliance"},
            "tickformat": ".0%",
            "range": _room(harm),
        },
        "yaxis": {"title": {"text": label}, "tickformat": ".0%", "range": _room(value)},
        "showlegend": True,
    }
    return {"data": traces, "layout": layout}


HOVER = "%{text}<br>harm %{x:.1%}<br>%{y:.1%}<extra></extra>"


def _room(values: Sequence[float]) -> list[float]:
    """An axis around the values with room for the names of the two ends."""
    known = [value for value in values if not math.isnan(value)] or [0.0]
    low, high = min(known), max(known)
    pad = 0.18 * (high - low) + 0.01
    return [low - pad, high + pad]


def _marked(text: str, harm: float, value: float) -> Trace:
    is_base = text == "base"
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": text,
        "x": [harm],
        "y": [value],
        "text": [f"<b>{text}</b>"],
        "textposition": "top center",
        "cliponaxis": False,
        "marker": {
            "size": 15,
            "color": "var(--muted)" if is_base else "var(--green)",
            "symbol": "diamond" if is_base else "star",
        },
        "hovertemplate": HOVER,
    }


def _cost(record: RunRecord) -> Figure | None:
    figure = _curves(record.metrics, {record.cost_name: ("cost", "--red")}, "cost")
    return _bounded(figure, record, record.bound_of(record.cost_name), "budget {:g}")


def _unsafe(record: RunRecord) -> Figure | None:
    classes = {
        f"unsafe_fraction_{category}": (category.value, color)
        for category, color in CLASS_COLORS.items()
        if category.is_safety
    }
    bound = record.bound_of(record.share_name)
    # What is bounded is drawn too: the classes' mean hangs on the mixture.
    bounded = {} if bound is None else {record.share_name: ("in scope", "--text")}
    unit = "share with cost > 0"
    figure = _curves(record.metrics, classes | bounded, unit, tickformat=".0%")
    return _bounded(figure, record, bound, "at most {:g}")


def _bounded(
    figure: Figure | None, record: RunRecord, bound: float | None, words: str
) -> Figure | None:
    """With a dashed line at the bound, where there is one."""
    if figure is None or bound is None:
        return figure
    figure["data"].append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": words.format(bound),
            "x": [0, max(row["iteration"] for row in record.metrics)],
            "y": [bound] * 2,
            "line": {"color": "var(--text)", "width": 1.5, "dash": "dash"},
        }
    )
    figure["layout"]["showlegend"] = True
    return figure


def _curves(
    rows: Sequence[Row],
    names: dict[str, tuple[str, str]],
    unit: str,
    *,
    tickformat: str = "",
    smooth: bool = True,
) -> Figure | None:
    traces: list[Trace] = []
    for name, (label, color) in names.items():
        x, y = _series(rows, name)
        if x:
            noisy = smooth and len(x) >= 3 * SMOOTHING
            traces += (_smoothed if noisy else _plain)(x, y, label, color)
    layout = {
        "xaxis": {"title": {"text": "iteration"}},
        "yaxis": {"title": {"text": unit}, "tickformat": tickformat},
        "showlegend": len(names) > 1,
    }
    return {"data": traces, "layout": layout} if traces else None


def _plain(x: list[int], y: list[float], label: str, color: str) -> list[Trace]:
    line = {"color": f"var({color})", "width": 2.2}
    return [{"type": "scatter", "mode": "lines", "name": label, "x": x, "y": y, "line": line}]


def _smoothed(x: list[int], y: list[float], label: str, color: str) -> list[Trace]:
    half = SMOOTHING // 2
    windows = [y[max(0, i - half) : i + half + 1] for i in range(len(y))]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label,
            "legendgroup": label,
            "showlegend": False,
            "hoverinfo": "skip",
            "opacity": 0.3,
            "x": x,
            "y": y,
            "line": {"color": f"var({color})", "width": 1},
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": label,
            "legendgroup": label,
            "x": x,
            "y": [math.fsum(window) / len(window) for window in windows],
            "line": {"color": f"var({color})", "width": 2.2},
        },
    ]


def _mixture(rows: Sequence[Row]) -> Figure | None:
    traces = []
    for category, color in CLASS_COLORS.items():
        x, y = _series(rows, f"mixture_{category}")
        if x:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": category.value,
                    "stackgroup": "mixture",
                    "x": x,
                    "y": y,
                    "line": {"width": 0.5, "color": f"var({color})"},
                }
            )
    layout = {
        "xaxis": {"title": {"text": "iteration"}},
        "yaxis": {"title": {"text": "share of prompts"}, "tickformat": ".0%", "range": [0, 1]},
        "showlegend": True,
    }
    return {"data": traces, "layout": layout} if traces else None


def _seconds(rows: Sequence[Row]) -> Figure | None:
    """Seconds of each phase, and on top the part of the iteration that no phase claims."""
    traces = []
    splits = [split_seconds(row["seconds"]) for row in rows]
    for phase, color in PHASE_COLORS.items():
        y = [split.get(phase, 0.0) for split in splits]
        if any(value > 0 for value in y):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": phase,
                    "stackgroup": "seconds",
                    "x": [row["iteration"] for row in rows],
                    "y": y,
                    "line": {"width": 0.5, "color": f"var({color})"},
                }
            )
    layout = {
        "xaxis": {"title": {"text": "iteration"}},
        "yaxis": {"title": {"text": "seconds"}, "rangemode": "tozero"},
        "showlegend": True,
    }
    return {"data": traces, "layout": layout} if traces else None


def split_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Phases that add up: of a whole `iteration`, what its phases leave unclaimed is `other`."""
    parts = {phase: value for phase, value in seconds.items() if phase != "iteration"}
    claimed = math.fsum(parts.get(phase, 0.0) for phase in SECONDS if phase != "iteration")
    return {**parts, "other": max(0.0, seconds.get("iteration", claimed) - claimed)}


def _series(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    points = [(row["iteration"], row[name]) for row in rows if row.get(name) is not None]
    return [x for x, _ in points], [y for _, y in points]
