"""A figure is a dotted name into a result: `harm.EHD_seen`, `training.kept_fraction`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from equilibrate.config.files import nearest
from equilibrate.config.study import StudyConfig, split_figure
from equilibrate.errors import DataError
from equilibrate.evaluation import Estimate, mean_interval
from equilibrate.report.headline import percent, signed
from equilibrate.report.pooled import GROUPS
from equilibrate.study.results import ByArm, RunResult

_CELL_GROUPS = {
    "harm": "harmful_compliance",
    "over_refusal": "over_refusal",
    "helpfulness": "helpfulness",
}


def figure_of(result: RunResult, name: str) -> float:
    """The figure of the aligned policy, or of its training; nan where a run recorded no number.

    Raises: ValueError for a name that does not parse, DataError naming the nearest cell or key for
    one that the result does not hold.
    """
    group, part = split_figure(name)
    table = result.aligned
    if group == "malformed":
        return table.malformed.mean
    if not part:
        return table.mean_harm if group == "harm" else table.mean_over_refusal
    if group == "training":
        numbers: Mapping[str, float] = result.training
    else:
        cells = getattr(table, _CELL_GROUPS[group])
        cells = cells | table.harm_by_part if group == "harm" else cells
        numbers = {name: figure.mean for name, figure in cells.items()}
    if part not in numbers:
        hint = nearest(part, numbers) or f"it has {', '.join(numbers) or 'none'}"
        raise DataError(f"figure ({name!r}) must be in result {result.key}; {hint}")
    return numbers[part]


def figure_or_nan(result: RunResult, name: str) -> float:
    """As `figure_of`, but nan for what the result does not hold.

    Arms of a question need not record the same numbers, and a study of many hours is not to be
    stopped by a table. `absent_figures` says what is nowhere.
    """
    try:
        return figure_of(result, name)
    except DataError:
        return math.nan


def absent_figures(study: StudyConfig, by_arm: ByArm) -> list[str]:
    """One line for each figure that finished runs of a question should have, but none has."""
    lines = []
    for question in study.questions:
        results = [result for arm in question.arms for result in by_arm[arm].values()]
        for name in question.tabulated:
            messages = [message for result in results if (message := _absence(result, name))]
            if messages and len(messages) == len(results):
                lines.append(f"{question.id}: {messages[0]}")
    return lines


def front_point(result: RunResult, axes: tuple[str, str]) -> tuple[float, float]:
    """Harm, and a value in [0, 1] of which more is better: of refusals, the share without them."""
    harm, value = (figure_or_nan(result, name) for name in axes)
    return harm, 1 - value if axes[1].startswith("over_refusal") else value


def over_seeds(results: Iterable[RunResult], name: str) -> Estimate | None:
    """Mean of a figure with its 95 % t-interval over seeds; None if no result has it.

    A single seed has no interval: low and high are then nan. What a training counts about itself
    and is equal in all seeds follows from its settings: it is certain.
    """
    values = [v for v in (figure_or_nan(result, name) for result in results) if v == v]
    if not values:
        return None
    if len(values) == 1:
        return Estimate(mean=values[0], low=math.nan, high=math.nan, n=1)
    is_certain = name.startswith("training.") and len(set(values)) == 1
    limits = {"lower": 0.0, "upper": 1.0} if is_share(name) and not is_certain else {}
    return mean_interval(values, **limits)


def is_share(name: str) -> bool:
    """Whether the figure lies in [0, 1] and is shown in percent."""
    return not name.startswith("training.") or name.endswith("_fraction")


def figure_title(name: str) -> str:
    """For example `harmful answers, EHD_seen`."""
    group, part = split_figure(name)
    title = GROUPS.get(_CELL_GROUPS.get(group, ""), "malformed answers")
    if group == "training":
        return part.replace("_fraction", "").replace("_", " ")
    return f"{title}, {part}" if part else title


def show_figure(estimate: Estimate | None, *, share: bool) -> str:
    """`12.3 % [10.1, 14.5]`; without the interval for a single seed."""
    if estimate is None:
        return "-"
    mean = percent(estimate.mean) if share else _number(estimate.mean)
    if estimate.n < 2:
        return mean
    low, high = (f"{100 * x:.1f}" if share else _number(x) for x in (estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def show_gap(gap: Estimate | None, *, share: bool) -> str:
    """`+2.0 [-0.5, +4.5]`; without the interval for a single seed."""
    if gap is None:
        return "-"
    mean, low, high = (show_change(x, share=share) for x in (gap.mean, gap.low, gap.high))
    return mean if gap.n < 2 else f"{mean} [{low}, {high}]"


def show_change(value: float, *, share: bool) -> str:
    """With its sign; percentage points for a share."""
    return signed(value) if share else _number(value, sign="+")


def _absence(result: RunResult, name: str) -> str:
    try:
        figure_of(result, name)
    except DataError as error:
        return str(error)
    return ""


def _number(value: float, sign: str = "") -> str:
    text = format(value, f"{sign},.0f" if abs(value) >= 100 else f"{sign}.3g")
    return text.replace("-", "\N{MINUS SIGN}")
