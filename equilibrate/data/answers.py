"""Labelled answers: as text from a data set, and as what a loss sees of a batch.

Answers that are compared stand side by side: of a pair the chosen one first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from equilibrate.data.columns import (
    Columns,
    categories_of,
    require_columns,
    require_labels,
    require_text,
)
from equilibrate.errors import DataError
from equilibrate.types import Category, Conversation

Prefer = Literal["helpful", "safer", "safe_first"]
"""Which answer of a pair a policy learns: the better, the safer, or the safe one where the labels
differ and else the better; of two unsafe ones none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to learn from, as text."""

    prompt: str | Conversation
    response: str
    """The text to learn; the end of sequence follows it, unless there is a target."""
    given: str = ""
    """Beginning of the response that is context and not learned."""
    target: str = ""
    """Text whose first token every token of the response is taught to be; empty: itself."""
    side: int = 1
    """+1 to make it likelier, -1 to make it less likely."""
    is_safe: bool = True
    category: Category = Category.GENERAL


def demonstrations(columns: Columns) -> list[Answer]:
    """Columns prompt, response and, if there is one, category; of `pairs` the chosen answers.

    Raises: DataError naming the column that is missing.
    """
    if "response" not in columns and not {"chosen", "response_0"}.isdisjoint(columns):
        return [answer for answer in pairs(columns, by="preference") if answer.side > 0]
    require_columns(columns, ("prompt", "response"))
    require_text(columns, ("prompt", "response"))
    return [
        Answer(prompt=prompt, response=response, category=category)
        for prompt, response, category in zip(
            columns["prompt"], columns["response"], categories_of(columns), strict=True
        )
    ]


def pairs(
    columns: Columns, *, by: Literal["preference", "helpfulness"], needs_safety: bool = False
) -> list[Answer]:
    """Two answers a row, the chosen one first; rows that hold one answer twice are left out.

    Columns prompt, chosen and rejected; or prompt, response_0 and response_1 with the number of the
    chosen one in preferred_response_id, or without it and by helpfulness in better_response_id.
    Safety is read where the data state it: is_chosen_safe and is_rejected_safe, or
    is_response_0_safe and is_response_1_safe; elsewhere every answer counts as safe.

    Args: needs_safety: refuse data that do not state it.
    Raises: DataError naming the column that is missing or the row and value that cannot be read, or
        if every row holds one answer twice.
    """
    if "chosen" not in columns or (by == "helpfulness" and "better_response_id" in columns):
        has_preference = by == "preference" and "preferred_response_id" in columns
        label = "preferred_response_id" if has_preference else "better_response_id"
        columns = _ordered_by(label, columns)
    require_columns(columns, ("prompt", "chosen", "rejected"))
    require_text(columns, ("prompt", "chosen", "rejected"))
    safety = ("is_chosen_safe", "is_rejected_safe")
    if needs_safety and not set(safety) <= set(columns):
        raise DataError(
            f"columns {' and '.join(safety)} (or is_response_0_safe and is_response_1_safe) are "
            "missing; this objective learns from the safety of both answers"
        )
    for name in safety:
        require_labels(columns, name)
    count = len(columns["prompt"])
    safe = [columns.get(f"is_{side}_safe", [True] * count) for side in ("chosen", "rejected")]
    rows = zip(
        columns["prompt"], columns["chosen"], columns["rejected"], *safe, categories_of(columns),
        strict=True,
    )  # fmt: skip
    answers = [
        Answer(
            prompt=prompt,
            response=response,
            side=side,
            is_safe=bool(is_safe),
            category=category,
        )
        for prompt, chosen, rejected, chosen_safe, rejected_safe, category in rows
        if chosen != rejected
        for response, side, is_safe in ((chosen, 1, chosen_safe), (rejected, -1, rejected_safe))
    ]
    if not answers:
        raise DataError("every pair holds the same response twice; give pairs that differ")
    return answers


def harm_labels(columns: Columns) -> list[Answer]:
    """Answers that are labelled one by one, for a cost model: columns prompt, response, is_safe.

    Raises: as `pairs`.
    """
    require_columns(columns, ("prompt", "response", "is_safe"))
    require_text(columns, ("prompt", "response"))
    require_labels(columns, "is_safe")
    return [
        Answer(prompt=prompt, response=response, is_safe=bool(is_safe), category=category)
        for prompt, response, is_safe, category in zip(
            columns["prompt"],
            columns["response"],
            columns["is_safe"],
            categories_of(columns),
            strict=True,
        )
    ]


def parted(columns: Columns) -> tuple[Columns, Columns]:
    """The rows that hold pairs, and those that hold one answer alone.

    A row is of one kind: of the other its columns hold None (`equilibrate.data.tables.joined`).
    """
    count = len(columns["prompt"])
    if {"chosen", "response_0"}.isdisjoint(columns):
        is_single = ["response" in columns] * count
    else:
        is_single = [value is not None for value in columns.get("response", [None] * count)]
    of_pairs, singles = (
        {
            name: [value for value, single in zip(values, is_single, strict=True) if single is kind]
            for name, values in columns.items()
        }
        for kind in (False, True)
    )
    return of_pairs, singles


def harm_pairs(columns: Columns) -> list[Answer]:
    """Two answers a row for a cost model, the less safe one first, which is to score higher.

    Columns prompt, response_0, response_1, safer_response_id, is_response_0_safe and
    is_response_1_safe; rows that hold one answer twice are left out.

    Raises: as `pairs`.
    """
    needed = ("safer_response_id", "is_response_0_safe", "is_response_1_safe")
    require_columns(columns, ("prompt", "response_0", "response_1", *needed))
    ordered = pairs(_ordered_by("safer_response_id", columns), by="preference", needs_safety=True)
    return [
        replace(answer, side=-answer.side)
        for safer, unsafer in zip(ordered[0::2], ordered[1::2], strict=True)
        for answer in (unsafer, safer)
    ]


def help_and_harm_pairs(columns: Columns) -> list[Answer]:
    """Two answers a row for a model of both scores, the more helpful one first; of each pair the
    more harmful answer has side +1, the other one -1.

    Columns of `harm_pairs`, and better_response_id; rows that hold one answer twice are left out.

    Raises: as `pairs`.
    """
    needed = ("better_response_id", "safer_response_id")
    safety = ("is_response_0_safe", "is_response_1_safe")
    require_columns(columns, ("prompt", "response_0", "response_1", *needed, *safety))
    require_labels(columns, "safer_response_id")
    ordered = _ordered_by("better_response_id", columns)
    agree = [
        int(better) == int(safer)
        for better, safer in zip(*(columns[name] for name in needed), strict=True)
    ]
    told = zip(ordered["chosen"], ordered["rejected"], agree, strict=True)
    agree = [agrees for chosen, rejected, agrees in told if chosen != rejected]
    answers = pairs(ordered, by="preference", needs_safety=True)
    return [
        replace(answer, side=-answer.side if agree[place // 2] else answer.side)
        for place, answer in enumerate(answers)
    ]


def choices(columns: Columns, prefer: Prefer) -> list[int | str]:
    """Of each row which answer a policy is to learn, or why the row teaches it nothing.

    What the data prefer, all told (`preferred_response_id`), holds whatever is preferred here. Of
    a single answer the number says nothing, and only an unsafe or unwanted one is left out.
    """
    count = len(columns["prompt"])
    names = ("is_response_0_safe", "is_response_1_safe", "better_response_id", "safer_response_id")
    if "response_0" not in columns:
        of_answers = (columns.get(name, [None] * count) for name in ("is_safe", "is_good"))
        return [
            _single(is_safe, is_good, prefer) for is_safe, is_good in zip(*of_answers, strict=True)
        ]
    stated = columns.get("preferred_response_id", [None] * count)
    labels = zip(*(columns.get(name, [None] * count) for name in names), strict=True)
    return [
        _of_pair(first, other, better, safer, prefer) if given is None else given
        for given, (first, other, better, safer) in zip(stated, labels, strict=True)
    ]


def labelled(columns: Columns, name: str) -> list[int | str]:
    """As `choices`, by a label alone; rows without it teach nothing. () where no row has it."""
    if name not in columns:
        return []
    told = f"neither answer is said to be the {name.partition('_')[0]} one"
    return [told if number is None else number for number in columns[name]]


def labelled_twice(columns: Columns, first: str, second: str) -> list[int | str]:
    """As `labelled` by the first label, of rows that have the second one as well."""
    pairs = zip(labelled(columns, first), labelled(columns, second), strict=False)
    return [other if isinstance(other, str) else number for number, other in pairs]


def _single(is_safe: bool | None, is_good: bool | None, prefer: Prefer) -> int | str:
    if is_good is False:
        return "the answer is not wanted"
    return "the answer is unsafe" if is_safe is False and prefer != "helpful" else 0


def _of_pair(
    first: bool | None, other: bool | None, better: int | None, safer: int | None, prefer: Prefer
) -> int | str:
    differ = first is not None and other is not None and first != other
    if prefer == "safe_first" and first is False and other is False:
        return "both answers are unsafe"
    if prefer == "safer":
        found = int(bool(other)) if safer is None and differ else safer
        return "neither answer is said to be the safer one" if found is None else found
    if prefer == "safe_first" and differ:
        return int(bool(other))
    return "neither answer is said to be the better one" if better is None else better


def _ordered_by(label: str, columns: Columns) -> dict[str, Sequence[Any]]:
    require_columns(columns, ("prompt", "response_0", "response_1", label))
    require_labels(columns, label)
    first = [int(value) for value in columns[label]]
    ordered: dict[str, Sequence[Any]] = {
        name: columns[name] for name in ("prompt", "category") if name in columns
    }
    for names, stem in (("{}", "response_{}"), ("is_{}_safe", "is_response_{}_safe")):
        one, other = (columns.get(stem.format(i)) for i in (0, 1))
        if one is None or other is None:
            continue
        rows = list(zip(one, other, first, strict=True))
        ordered[names.format("chosen")] = [row[row[2]] for row in rows]
        ordered[names.format("rejected")] = [row[1 - row[2]] for row in rows]
    return ordered
