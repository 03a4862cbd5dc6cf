"""Rooflines by hand; the toy machine does 1000 FLOP/s and reads 100 bytes/s."""

from dataclasses import replace

import pytest

from equilibrate.planner.hardware import GPUS
from tests.unit.planner.perfect import PERFECT


def test_prefill_is_bound_by_products(make_costs):
    assert make_costs().prefill_seconds(8) == pytest.approx(2 * 10 * 8 / 1000)


def test_decode_step_reads_weights_and_cache(make_costs):
    # (20 + 2 x 8) / 100; the products of two tokens take only 2 x 10 x 2 / 1000 = 0.04.
    assert make_costs().decode_seconds(2, 8) == pytest.approx(0.36)


def test_decode_step_is_bound_by_products_for_many_sequences(make_costs):
    # 2 x 10 x 1000 / 1000 = 20 s; bytes: 20 / 100 = 0.2 s.
    assert make_costs().decode_seconds(1000, 0) == pytest.approx(20.0)


def test_fixed_seconds_come_for_every_layer_and_more_over_the_network(make_costs):
    slow = replace(PERFECT, layer_seconds=0.1, network_seconds=0.2)
    wide = {"efficiency": slow, "rollout_gpus": 4, "train_gpus": 4}
    assert make_costs(efficiency=slow).step_seconds == pytest.approx(0.1)
    assert make_costs(**wide, rollout_tp=2).step_seconds == pytest.approx(0.1)
    assert make_costs(**wide, rollout_tp=4).step_seconds == pytest.approx(0.3)


def test_an_engine_divides_weights_but_not_a_single_key_head(make_costs):
    costs = make_costs(rollout_gpus=2, train_gpus=2, rollout_tp=2)
    # (20 / 2 + 2 x 8) / 100.
    assert costs.decode_seconds(2, 8) == pytest.approx(0.26)


def test_cache_has_what_the_weights_leave(make_costs):
    small = replace(make_costs().gpu, memory_bytes=100)
    # (100 x 0.6 - 20) / 2 bytes a token.
    assert make_costs(small, memory_fraction=0.6).cache_limit == pytest.approx(20)


def test_scoring_and_update_are_forward_passes(make_costs):
    # A pass over 14 tokens: 2 x 10 x 14 / 1000 = 0.28. Two score, three update, four if recomputed.
    assert make_costs().scoring_seconds() == pytest.approx(0.56)
    assert make_costs().update_seconds() == pytest.approx(0.84)
    assert make_costs(work={"recompute": True}).update_seconds() == pytest.approx(1.12)
    assert make_costs(work={"trained_models": 3}).update_seconds() == pytest.approx(2.52)


def test_attention_grows_with_the_length(make_costs):
    model = replace(make_costs().model, attention_width=5.0)
    # 2 L w s = 2 x 1 x 5 x 7 = 70 FLOP a token beside 2 N = 20: 90 x 14 / 1000.
    assert make_costs(model=model).pass_seconds(1.0) == pytest.approx(1.26)


def test_pipeline_waits_for_its_first_and_last_micro_batch(make_costs):
    place = {"rollout_gpus": 4, "train_gpus": 4, "train_pp": 4}
    # 14 tokens, the longest sequence 4 + 3: 2 micro-batches, 3 idle ones beside them.
    costs = make_costs(longest=3, **place)
    assert costs.scoring_seconds() == pytest.approx(0.56 / 4 * (1 + 3 / 2))
    # Two optimizer steps leave one micro-batch each.
    costs = make_costs(longest=3, work={"num_updates": 2}, **place)
    assert costs.update_seconds() == pytest.approx(0.84 / 4 * (1 + 3 / 1))


def test_tensor_parallel_moves_two_all_reduces_a_layer(make_costs):
    costs = make_costs(rollout_gpus=2, train_gpus=2, train_tp=2)
    # Each GPU sends 2 x 2 (t - 1) / t x 2 h bytes for each of 14 tokens: 2 x 1 x 8 x 14 = 224.
    moved = 224 / 10
    assert costs.pass_seconds(1.0) == pytest.approx(20 * 14 / 2000 + moved)


def test_experts_receive_and_return_tokens(make_costs):
    model = replace(make_costs().model, num_experts=4, experts_per_token=2, moe_layers=1)
    costs = make_costs(model=model, rollout_gpus=2, train_gpus=2, train_ep=2)
    # 7 tokens a GPU, 2 experts each, there and back, 2 x 4 bytes, half of them elsewhere: 112.
    assert costs.pass_seconds(1.0) == pytest.approx(20 * 14 / 2000 + 112 / 10)


def test_sync_is_weights_over_the_link(make_costs):
    assert make_costs().sync_seconds() == pytest.approx(20 / 10)
    # Four GPUs leave the NVLink domain of two; the two network cards of a domain share: 4 bytes/s.
    apart = make_costs(rollout_gpus=2, train_gpus=2, colocated=False)
    assert apart.sync_seconds() == pytest.approx(20 / 4)
    assert make_costs(efficiency=replace(PERFECT, sync=0.5)).sync_seconds() == pytest.approx(4.0)


def test_links_of_the_listed_hardware():
    h100 = GPUS["H100"]
    assert h100.link(8) == 450e9
    assert h100.link(9) == 50e9
    assert h100.broadcast_link(9) == 400e9
    # 72 network cards together would be faster than the NVLink that the bytes leave a GPU by.
    assert GPUS["GB200"].link(64) == GPUS["GB200"].broadcast_link(73) == 900e9
