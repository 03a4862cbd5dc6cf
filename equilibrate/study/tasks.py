"""The runs of a grid, dealt into tasks: what one process makes, one run after another."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import zip_longest
from typing import TypeVar

from equilibrate.config.study import Kind
from equilibrate.study.grid import PlannedRun

Item = TypeVar("Item")

MOST_TOGETHER: dict[Kind, int] = {"fit": 8, "train": 4}
"""Runs of one task at most: the processes that they share are then a small part of their time."""


def deal_tasks(runs: Sequence[PlannedRun], *, parallel: int) -> list[tuple[PlannedRun, ...]]:
    """The runs of each task, in the order in which the tasks begin.

    The runs of a task have one seed and kind, so that they can share a generator. Tasks get smaller
    towards the end, half of an equal share of what is left: so no place stays empty for long while
    another has several runs to go.

    Args: parallel: tasks under way at a time, at least 1.
    """
    by_seed: dict[int, dict[Kind, list[PlannedRun]]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, {}).setdefault(run.kind, []).append(run)
    num_left = len(runs)
    seeds: list[list[tuple[PlannedRun, ...]]] = []
    for kinds in by_seed.values():
        tasks = []
        for kind, group in kinds.items():
            while group:
                share = math.ceil(num_left / (2 * parallel))
                size = min(MOST_TOGETHER[kind], share)
                task, group = tuple(group[:size]), group[size:]
                tasks.append(task)
                num_left -= len(task)
        seeds.append(tasks)
    return one_ahead(seeds)


def one_ahead(groups: Sequence[Sequence[Item]]) -> list[Item]:
    """The items of all groups, with the first of each group one group earlier.

    The first task of a seed makes the models that its others wait for: it does so while the tasks
    of the seed before keep the other cores busy.
    """
    order = list(groups[0][:1]) if groups else []
    for group, after in zip_longest(groups, groups[1:], fillvalue=()):
        order += [*after[:1], *group[1:]]
    return order


def next_task(seeds: Sequence[int], preparing: Collection[int]) -> int:
    """Place of the task to begin next, among waiting tasks of these seeds.

    Args: preparing: seeds whose models a task under way is still making: another task of the seed
        could only wait for it.
    """
    return next((place for place, seed in enumerate(seeds) if seed not in preparing), 0)
