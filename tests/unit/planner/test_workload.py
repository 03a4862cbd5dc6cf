"""Lengths, weights that a step touches, placements that make no sense."""

from dataclasses import replace

import numpy as np
import pytest

from equilibrate.planner.workload import Lengths, Placement


def test_dense_models_read_all_their_weights(make_costs):
    assert make_costs().model.touched_bytes(1) == 20


def test_routed_experts_are_read_if_any_sequence_needs_them(make_costs):
    model = replace(
        make_costs().model,
        num_parameters=100.0,
        num_active=40.0,
        num_experts=4,
        experts_per_token=1,
        moe_layers=1,
    )
    # Experts hold 80 (a quarter of 80 and the other 20 are active: 40).
    assert model.touched_bytes(1) == pytest.approx(2 * 40)
    # Two sequences: 1 - 0.75^2 = 0.4375 of 80 = 35, and 20.
    assert model.touched_bytes(2) == pytest.approx(2 * 55)
    assert model.touched_bytes(1000) == pytest.approx(2 * 100)


@pytest.mark.parametrize(("mean", "longest"), [(100, 4096), (1000, 4096), (3200, 4000)])
def test_lengths_have_the_published_mean_and_limit(mean, longest):
    sample = Lengths(mean=mean, longest=longest).sample(512, np.random.default_rng(0))
    assert sample.mean() == pytest.approx(mean, rel=0.02)
    assert sample.min() >= 1
    assert sample.max() <= longest
    assert (np.diff(sample) <= 0).all()


def test_without_spread_all_are_the_mean():
    sample = Lengths(mean=7, longest=64, sigma=0.0).sample(3, np.random.default_rng(0))
    assert sample.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    "wrong", [{"max_policy_lag": 1}, {"train_gpus": 4}, {"rollout_tp": 16}], ids=str
)
def test_impossible_placements_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        Placement(**{"rollout_gpus": 8, "train_gpus": 8, "colocated": True, **wrong})


def test_a_copy_of_the_weights_spans_pipeline_times_the_wider_cut():
    place = Placement(
        rollout_gpus=64, train_gpus=64, colocated=True, train_tp=2, train_pp=4, train_ep=8
    )
    assert place.shard_group == 32
    assert place.data_parallel == 8
    assert place.num_gpus == 64
