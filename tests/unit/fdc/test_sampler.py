from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibrate.errors import DataError
from equilibrate.fdc.sampler import FdcSampler
from equilibrate.fdc.schedules import FixedSchedule, SaturationSchedule
from equilibrate.seeds import request_seed
from equilibrate.types import Category, Prompt, PromptBatch, ScoredRollout

MIXTURE = {
    Category.GENERAL: 0.30,
    Category.BORDERLINE: 0.25,
    Category.EHD: 0.25,
    Category.IHD: 0.12,
    Category.MHD: 0.08,
}


def make_prompts(per_class: Mapping[Category, int]) -> list[Prompt]:
    return [
        Prompt(
            prompt_id=f"{category}-{i}", text=f"{category} {i}", token_ids=(i,), category=category
        )
        for category, count in per_class.items()
        for i in range(count)
    ]


def make_sampler(
    mixture: Mapping[Category, float] = MIXTURE, per_class: int = 50, **overrides: Any
) -> FdcSampler:
    arguments: dict[str, Any] = {
        "prompts_per_iteration": 16,
        "copies": 2,
        "iterations": 100,
        "when_short": "oversample",
        "seed": 3,
    } | overrides
    prompts = make_prompts(dict.fromkeys(Category, per_class))
    return FdcSampler(prompts, FixedSchedule(mixture), **arguments)


def ids(batch: PromptBatch) -> list[str]:
    return [prompt.prompt_id for prompt in batch.prompts]


def test_responses_to_a_prompt_that_comes_twice_go_on_counting() -> None:
    one, two = make_prompts({Category.EHD: 2})
    batch = PromptBatch(iteration=0, prompts=(one, two, one), copies=2)
    numbered = [(prompt.prompt_id, number) for prompt, number in batch.responses()]
    # The first time it is numbered, and so seeded, as it is where it comes once.
    first = [("EHD-0", 0), ("EHD-0", 1), ("EHD-1", 0), ("EHD-1", 1)]
    assert numbered == [*first, ("EHD-0", 2), ("EHD-0", 3)]


def test_a_batch_larger_than_its_class_holds_no_response_twice() -> None:
    sampler = make_sampler({Category.EHD: 1.0}, per_class=5)
    batch = sampler.next_batch(0)
    seeds = {request_seed(0, 0, p.prompt_id, number) for p, number in batch.responses()}
    assert len(set(ids(batch))) == 5
    assert len(seeds) == 16 * 2


def test_counts_follow_the_shares_after_every_batch() -> None:
    sampler = make_sampler()
    counts: Counter[Category] = Counter()
    for iteration in range(100):
        batch = sampler.next_batch(iteration)
        assert (batch.iteration, len(batch.prompts), batch.copies) == (iteration, 16, 2)
        counts.update(prompt.category for prompt in batch.prompts)
        for category, share in MIXTURE.items():
            assert abs(counts[category] - share * 16 * (iteration + 1)) < 1
    # 1600 prompts: .30 -> 480, .25 -> 400, .25 -> 400, .12 -> 192, .08 -> 128, all whole numbers.
    assert counts == {
        Category.GENERAL: 480,
        Category.BORDERLINE: 400,
        Category.EHD: 400,
        Category.IHD: 192,
        Category.MHD: 128,
    }
    assert sampler.realised_mixture() == pytest.approx(MIXTURE)


def test_released_counts_are_met_exactly() -> None:
    # 14 prompts a batch in the ratio 10 : 3 : 1.
    mixture = {Category.EHD: 10_000, Category.IHD: 3_000, Category.MHD: 1_000}
    sampler = make_sampler(mixture, prompts_per_iteration=14)
    batch = sampler.next_batch(0)
    assert Counter(p.category for p in batch.prompts) == {
        Category.EHD: 10,
        Category.IHD: 3,
        Category.MHD: 1,
    }
    assert sampler.realised_mixture()[Category.GENERAL] == 0.0


def test_realised_mixture_before_the_first_batch_is_the_wanted_one() -> None:
    mixture = make_sampler({Category.EHD: 1, Category.GENERAL: 3}).realised_mixture()
    assert mixture[Category.GENERAL] == 0.75
    assert mixture[Category.EHD] == 0.25
    assert sum(mixture.values()) == 1


def test_no_prompt_twice_before_its_class_is_through() -> None:
    sampler = make_sampler({Category.EHD: 1}, per_class=48)
    first = [i for n in range(3) for i in ids(sampler.next_batch(n))]
    second = [i for n in range(3, 6) for i in ids(sampler.next_batch(n))]
    assert len(set(first)) == 48
    assert sorted(first) == sorted(second)
    assert first != second


def test_batch_across_two_passes_has_no_prompt_twice() -> None:
    # 21 prompts in batches of 16: the second batch takes 5 of one pass and 11 of the next.
    sampler = make_sampler({Category.EHD: 1}, per_class=21)
    for iteration in range(40):
        assert len(set(ids(sampler.next_batch(iteration)))) == 16


def test_class_smaller_than_a_batch_repeats() -> None:
    sampler = make_sampler({Category.EHD: 1}, per_class=5)
    # 16 = 3 * 5 + 1: each three times, one of them four times.
    assert sorted(Counter(ids(sampler.next_batch(0))).values()) == [3, 3, 3, 3, 4]


def test_seed_decides_the_order() -> None:
    one, same, other = (make_sampler(seed=seed) for seed in (3, 3, 4))
    batches = [sampler.next_batch(0) for sampler in (one, same, other)]
    assert batches[0] == batches[1]
    assert set(ids(batches[0])) != set(ids(batches[2]))


def test_classes_are_shuffled_within_a_batch() -> None:
    categories = [p.category for p in make_sampler().next_batch(0).prompts]
    runs = sum(a is not b for a, b in pairwise(categories))
    assert runs > 4


def test_order_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "from tests.unit.fdc.test_sampler import make_sampler, ids;"
        "print(ids(make_sampler().next_batch(0)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{ids(make_sampler().next_batch(0))}\n"}


@settings(max_examples=25)
@given(st.integers(0, 20), st.integers(1, 60), st.integers(1, 40))
def test_resumed_sampler_continues_exactly(done: int, per_class: int, batch: int) -> None:
    straight = make_sampler(per_class=per_class, prompts_per_iteration=batch)
    resumed = make_sampler(per_class=per_class, prompts_per_iteration=batch)
    for iteration in range(done):
        straight.next_batch(iteration)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict(), allow_nan=False)))
    for iteration in range(done, done + 10):
        assert straight.next_batch(iteration) == resumed.next_batch(iteration)
    assert straight.realised_mixture() == resumed.realised_mixture()
    assert straight.state_dict() == resumed.state_dict()


def test_saved_state_does_not_change_with_the_sampler() -> None:
    sampler = make_sampler()
    saved = sampler.state_dict()
    copy = json.dumps(saved)
    sampler.next_batch(0)
    assert json.dumps(saved) == copy


def test_missing_class_is_named_with_the_available_ones() -> None:
    prompts = make_prompts({Category.GENERAL: 2, Category.IHD: 2})
    schedule = FixedSchedule({Category.MHD: 1, Category.GENERAL: 3})
    with pytest.raises(DataError, match=r"MHD a share \(0\.25\).*available classes: GENERAL, IHD"):
        FdcSampler(prompts, schedule, prompts_per_iteration=4, iterations=1)
    with pytest.raises(DataError, match="available classes: none"):
        FdcSampler([], schedule, prompts_per_iteration=4, iterations=1)


def test_short_class_is_refused_at_the_door() -> None:
    mixture = {Category.EHD: 1, Category.GENERAL: 3}
    # .25 of 16 * 10 = 40 prompts are needed.
    with pytest.raises(DataError, match=r"class GENERAL \(119 prompts\) must have at least 120"):
        make_sampler(mixture, per_class=119, iterations=10, when_short="error")
    sampler = make_sampler(mixture, per_class=120, iterations=10, when_short="error")
    for iteration in range(10):
        sampler.next_batch(iteration)
    with pytest.raises(DataError, match=r"class GENERAL .* is exhausted"):
        sampler.next_batch(10)


@pytest.mark.parametrize("change", ["data", "classes"])
def test_state_of_another_run_is_refused(change: str) -> None:
    saved = make_sampler().state_dict()
    other = make_sampler(per_class=49) if change == "data" else make_sampler({Category.EHD: 1})
    with pytest.raises(DataError, match=r"must match this run.*resume with the same prompts"):
        other.load_state_dict(saved)


def test_prompts_that_another_template_renders_are_those_of_another_run() -> None:
    def sampler(*token_ids: int) -> FdcSampler:
        prompt = Prompt(prompt_id="a", text="a", token_ids=token_ids, category=Category.EHD)
        return FdcSampler(
            [prompt], FixedSchedule({Category.EHD: 1}), prompts_per_iteration=1, iterations=1
        )

    sampler(5, 6).load_state_dict(sampler(5, 6).state_dict())
    with pytest.raises(DataError, match=r"must match this run.*tokenizer, text settings"):
        sampler(5, 7).load_state_dict(sampler(5, 6).state_dict())


def test_schedule_sees_outcomes_and_is_saved() -> None:
    seen: list[object] = []

    class Listening(SaturationSchedule):
        def observe(self, scored: Any) -> None:
            seen.append(scored)
            self._progress[Category.EHD].fast = 0.5

    def make() -> FdcSampler:
        prompts = make_prompts(dict.fromkeys(Category, 9))
        return FdcSampler(prompts, Listening(MIXTURE), prompts_per_iteration=4, iterations=1)

    sampler, resumed = make(), make()
    outcomes: list[ScoredRollout] = []
    sampler.observe(outcomes)
    assert seen == [outcomes]
    resumed.load_state_dict(sampler.state_dict())
    assert resumed.state_dict()["schedule"]["EHD"]["fast"] == 0.5


def of_files(counts: Mapping[int, int], category: Category = Category.GENERAL) -> list[Prompt]:
    return [
        Prompt(
            prompt_id=f"{category} {number} {i}",
            text="",
            token_ids=(number, i),
            category=category,
            file_number=number,
        )
        for number, count in counts.items()
        for i in range(count)
    ]


def test_within_a_class_each_file_has_its_share_whatever_its_size() -> None:
    prompts = of_files({0: 500, 1: 5}) + of_files({0: 3, 2: 50}, Category.EHD)
    mixture = FixedSchedule({Category.GENERAL: 0.5, Category.EHD: 0.5})

    shares = {"a.csv": 3.0, "b.csv": 1.0, "c.csv": 1.0}

    def make() -> FdcSampler:
        return FdcSampler(
            prompts, mixture, prompts_per_iteration=8, iterations=30, file_shares=shares
        )

    sampler, drawn = make(), []
    for iteration in range(15):
        drawn += sampler.next_batch(iteration).prompts
    counts = Counter((p.category, p.file_number) for p in drawn)
    # 60 of each class: 3 : 1 in both, between files 0 and 1 and between files 0 and 2.
    assert counts == {
        (Category.GENERAL, 0): 45,
        (Category.GENERAL, 1): 15,
        (Category.EHD, 0): 45,
        (Category.EHD, 2): 15,
    }
    # Five prompts, drawn 15 times: each three times.
    assert set(Counter(p.prompt_id for p in drawn if p.file_number == 1).values()) == {3}
    resumed = make()
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert [ids(resumed.next_batch(i)) for i in range(15, 30)] == [
        ids(sampler.next_batch(i)) for i in range(15, 30)
    ]


def test_a_file_that_is_too_small_for_its_share_is_named() -> None:
    with pytest.raises(DataError, match=r"class GENERAL of b\.csv \(5 prompts\).* at least 20"):
        FdcSampler(
            of_files({0: 500, 1: 5}),
            FixedSchedule({Category.GENERAL: 1.0}),
            prompts_per_iteration=8,
            iterations=10,
            when_short="error",
            file_shares={"a.csv": 3.0, "b.csv": 1.0},
        )


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    share=st.sampled_from([0.1, 0.25, 0.3, 0.55, 0.6]),
    prompts_per_iteration=st.integers(1, 9),
    iterations=st.integers(1, 12),
)
def test_who_passes_the_door_has_prompts_to_the_end_and_none_too_many_is_asked_for(
    weights: list[int], share: float, prompts_per_iteration: int, iterations: int
) -> None:
    def make(held: Mapping[int, int]) -> FdcSampler:
        return FdcSampler(
            of_files(held, Category.EHD) + of_files({0: 120}),
            FixedSchedule({Category.EHD: share, Category.GENERAL: 1 - share}),
            prompts_per_iteration=prompts_per_iteration,
            iterations=iterations,
            when_short="error",
            file_shares={f"{number}.csv": float(weight) for number, weight in enumerate(weights)},
        )

    enough = make(dict.fromkeys(range(len(weights)), 120))
    drawn = [p for i in range(iterations) for p in enough.next_batch(i).prompts]
    counts = Counter(p.file_number for p in drawn if p.category is Category.EHD)
    exact = {number: max(1, counts[number]) for number in range(len(weights))}
    sampler = make(exact)
    for iteration in range(iterations):
        sampler.next_batch(iteration)
    for number in counts:
        if counts[number] > 1:
            with pytest.raises(DataError, match=f"class EHD of {number}.csv .* at least"):
                make(exact | {number: counts[number] - 1})
