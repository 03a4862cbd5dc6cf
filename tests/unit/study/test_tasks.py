"""How runs are dealt into tasks: what they share, and how many places stay empty at the end."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.study import PlannedRun, deal_tasks, next_task
from equilibrate.study.tasks import MOST_TOGETHER, one_ahead


def planned(seed: int, kind: str, number: int) -> PlannedRun:
    return PlannedRun(
        key=f"{seed}-{kind}-{number}", kind=kind, seed=seed, arms=(f"{kind}{number}",), config={}
    )


def grid(num_seeds: int, *, fits: int, trains: int) -> list[PlannedRun]:
    return [
        planned(seed, kind, number)
        for seed in range(num_seeds)
        for kind, amount in (("fit", fits), ("train", trains))
        for number in range(amount)
    ]


def test_the_first_of_a_seed_starts_one_seed_early():
    assert one_ahead(["abc", "de", "f"]) == ["a", "d", "b", "c", "f", "e"]
    assert one_ahead(["ab"]) == ["a", "b"]
    assert one_ahead([]) == []


@pytest.mark.parametrize(
    ("seeds", "preparing", "place"),
    [
        ([0, 0, 1], set(), 0),
        ([0, 0, 1], {0}, 2),  # the others would only wait for the models of seed 0
        ([0, 0], {0}, 0),  # nothing else is left to do
    ],
)
def test_no_task_waits_where_another_could_run(seeds, preparing, place):
    assert next_task(seeds, preparing) == place


@pytest.mark.parametrize(
    ("runs", "parallel", "sizes"),
    [
        # ceil(left / 4): 11, 9, 7 and so on of 44, but at most 4 runs of PPO and never beyond a
        # seed; when the last has 11, 8, 6, 4, 3, 2, 1 to go, its tasks have 3, 2, 2, 1, 1, 1, 1.
        (grid(4, fits=0, trains=11), 2, [4, 4, 4, 3, 4, 4, 3, 3, 4, 3, 2, 2, 1, 1, 1, 1]),
        (grid(1, fits=20, trains=0), 1, [8, 6, 3, 2, 1]),  # half of 20, at most 8; of 12; of 6
        (grid(1, fits=3, trains=2), 16, [1, 1, 1, 1, 1]),  # a place for each
        ([], 2, []),
    ],
)
def test_tasks_get_smaller_towards_the_end(runs, parallel, sizes):
    assert [len(task) for task in deal_tasks(runs, parallel=parallel)] == sizes


@given(
    cells=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["fit", "train"])), max_size=60),
    parallel=st.integers(1, 20),
)
def test_every_run_is_dealt_once_with_others_of_its_kind(cells, parallel):
    runs = [planned(seed, kind, number) for number, (seed, kind) in enumerate(cells)]
    tasks = deal_tasks(runs, parallel=parallel)
    assert Counter(run.key for task in tasks for run in task) == Counter(run.key for run in runs)
    for task in tasks:
        assert len({(run.seed, run.kind) for run in task}) == 1
        assert len(task) <= MOST_TOGETHER[task[0].kind]
