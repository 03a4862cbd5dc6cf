"""The loop by hand on the toy machine, and what no loop may violate."""

from dataclasses import replace
from itertools import pairwise

import pytest

from equilibrate.planner.events import Engine, simulate
from tests.unit.planner.perfect import PERFECT

SPLIT = {"colocated": False, "rollout_gpus": 1, "train_gpus": 1}


def rollout_by_hand(length):
    """Prefill of 8 tokens, then steps of (20 + 2 x (8 + 2 i)) / 100 seconds for two sequences."""
    return 0.16 + sum((36 + 4 * i) / 100 for i in range(length))


def test_one_gpu_does_one_thing_after_another(make_costs):
    run = simulate(make_costs())
    # 0.16 + 0.36 + 0.40 + 0.44 = 1.36; scoring 0.56, update 0.84, sync 2.0.
    assert run.rollout == pytest.approx(1.36)
    assert run.step == pytest.approx(1.36 + 0.56 + 0.84 + 2.0)
    assert run.train_idle == pytest.approx(1.36 / 4.76)


def test_fixed_seconds_are_paid_once(make_costs):
    slow = replace(PERFECT, fixed_seconds=5.0)
    assert simulate(make_costs(efficiency=slow)).step == pytest.approx(4.76 + 5.0)


@pytest.mark.parametrize("length", [3, 6])
def test_lag_one_overlaps_rollout_and_training(make_costs, length):
    """An engine that is full with one batch: step = max(rollout, train) + sync."""
    run = simulate(make_costs(length=length, max_sequences=2, max_policy_lag=1, **SPLIT))
    # 3: 1.36 against 5 passes x 20 x 14 / 1000 = 1.4; 6: 2.92 against 5 x 20 x 20 / 1000 = 2.0.
    train = 5 * 20 * 2 * (4 + length) / 1000
    assert run.step == pytest.approx(max(rollout_by_hand(length), train) + 2.0)


def test_lag_zero_does_not_overlap_even_on_two_gpus(make_costs):
    assert simulate(make_costs(**SPLIT)).step == pytest.approx(4.76)


def test_a_finished_request_makes_room(make_costs):
    engine = Engine(make_costs(max_sequences=1))
    engine.submit(0, [2, 1], arrival=0.0)
    # Each prefills 4 tokens (0.08); alone, steps take (20 + 2 x 4) / 100 and (20 + 2 x 5) / 100.
    assert engine.run(0) == pytest.approx((0.08 + 0.28 + 0.30) + (0.08 + 0.28))


def test_short_requests_leave_a_smaller_batch(make_costs):
    engine = Engine(make_costs())
    engine.submit(0, [3, 1], arrival=0.0)
    # Two sequences: (20 + 16) / 100. Then one with 5 and 6 cached tokens: 0.30, 0.32.
    assert engine.run(0) == pytest.approx(0.16 + 0.36 + 0.30 + 0.32)


def test_an_arrival_joins_the_running_batch(make_costs):
    engine = Engine(make_costs())
    engine.submit(0, [3], arrival=0.0)
    engine.submit(1, [1], arrival=0.36)
    # 0.08 + 0.28 = 0.36: both run for one step, (20 + 2 x (5 + 4)) / 100, after 0.08 of prefill.
    assert engine.run(1) == pytest.approx(0.36 + 0.08 + 0.38)
    # The older one goes on alone with 6 cached tokens.
    assert engine.run(0) == pytest.approx(0.82 + 0.32)


def test_an_idle_engine_waits_for_work(make_costs):
    engine = Engine(make_costs())
    engine.submit(0, [1], arrival=7.0)
    assert engine.run(0) == pytest.approx(7.0 + 0.08 + 0.28)


def test_a_full_cache_sends_the_youngest_back(make_costs):
    gpu = replace(make_costs().gpu, memory_bytes=40)
    engine = Engine(make_costs(gpu, memory_fraction=1.0))  # (40 - 20) / 2 = 10 tokens.
    engine.submit(0, [3], arrival=0.0)
    engine.submit(1, [3], arrival=0.0)
    # Both: prefill 0.16, one step 0.36; now 5 + 5 tokens fill the cache. The first goes on alone:
    # 0.30 + 0.32. The second prefills 5 tokens again, 0.10, and takes 0.30 + 0.32.
    assert engine.run(0) == pytest.approx(0.16 + 0.36 + 0.62)
    assert engine.run(1) == pytest.approx(0.16 + 0.36 + 0.62 + 0.10 + 0.62)
    assert engine.preemptions == 1


def test_a_pause_delays_running_work_only(make_costs):
    busy, idle = Engine(make_costs()), Engine(make_costs())
    busy.submit(0, [1], arrival=0.0)
    for engine in (busy, idle):
        engine.pause(2.0)
    assert busy.run(0) == pytest.approx(2.0 + 0.36)
    assert idle.now == 0.0


GPU_COUNTS = (1, 2, 4, 8, 16)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_more_gpus_are_never_slower(make_costs, lag):
    def step(count):
        place = {"colocated": False, "rollout_gpus": count, "train_gpus": count}
        costs = make_costs(length=20, sigma=0.8, num_rollouts=64, max_policy_lag=lag, **place)
        # Weights travel further in a larger cluster: leave that out.
        return simulate(replace(costs, gpu=replace(costs.gpu, nvlink_domain=99))).step

    steps = [step(count) for count in GPU_COUNTS]
    assert all(more <= less * 1.001 for less, more in pairwise(steps))
    assert steps[-1] < steps[0] / 2


@pytest.mark.parametrize("lag", [0, 1])
def test_longer_responses_are_never_faster(make_costs, lag):
    place = {**SPLIT, "max_policy_lag": lag}
    steps = [
        simulate(make_costs(length=length, sigma=0.8, num_rollouts=16, longest=200, **place)).step
        for length in (5, 10, 20, 40, 80)
    ]
    assert steps == sorted(steps)


@pytest.mark.parametrize("sigma", [0.0, 0.8])
def test_lag_never_slows(make_costs, sigma):
    steps = [
        simulate(
            make_costs(length=20, sigma=sigma, num_rollouts=32, max_policy_lag=lag, **SPLIT),
            iterations=16,
        ).step
        for lag in (0, 1, 2, 4)
    ]
    # Batches differ in their draws, which moves a mean over 16 iterations by far less than 2 %.
    assert all(more <= less * 1.02 for less, more in pairwise(steps))
    assert steps[1] < 0.9 * steps[0]


def test_the_seed_decides(make_costs):
    costs = make_costs(length=20, sigma=0.8, num_rollouts=32)
    assert simulate(costs, seed=3) == simulate(costs, seed=3)
    assert simulate(costs, seed=3).step != simulate(costs, seed=4).step
