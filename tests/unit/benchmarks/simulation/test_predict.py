"""What fits where, and which split wins."""

import pytest

from benchmarks.simulation import predict as module
from benchmarks.simulation.predict import Job, predict
from benchmarks.simulation.published import read
from equilibrate.planner.hardware import GPUS
from tests.unit.planner.perfect import PERFECT

H100 = GPUS["H100"]


@pytest.fixture
def job():
    return Job(model=read().models["Llama-3.1-8B"], rollouts=256, response_mean=200, longest=400)


def test_states_of_three_trained_models_need_eight_gpus(job):
    # 8.03e9 x (3 x 16 + 3 x 2) = 434 GB; 0.7 x 80 GiB = 60 GB a GPU: 7.2 of them.
    assert not job.fits(H100, 7)
    assert job.fits(H100, 8)


def test_passes_of_ppo_lagrangian(job):
    work = job.workload()
    assert (work.scoring_passes, work.trained_models, work.recompute) == (6, 3, True)


def test_the_best_split_is_no_worse_than_any_other(job, monkeypatch):
    monkeypatch.setattr(module, "SIZES", (8, 32))
    small, large = predict(job, H100, PERFECT)
    assert small.colocated is not None
    assert small.split is None
    assert small.rollout_gpus is None
    assert large.split is not None
    monkeypatch.setattr(module, "SHARES", (0.5,))
    half = predict(job, H100, PERFECT)[1]
    assert half.rollout_gpus == 16
    assert large.split.step < half.split.step
