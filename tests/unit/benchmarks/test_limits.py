"""Limits by hand, for a toy model on a toy machine."""

import pytest

from benchmarks.limits import ModelShape, Roof, pass_flops, rollout_seconds, sync_seconds

# 100 parameters of 4 bytes: S = 400. Keys and values: 2 x 1 layer x 2 x 4 bytes = 16 per token.
SHAPE = ModelShape(num_parameters=100, num_layers=1, hidden_size=4, intermediate_size=8, kv_width=2)
ROOF = Roof(flops_per_second=1000.0, bytes_per_second=1000.0)


def test_bytes_of_weights_and_cache() -> None:
    assert SHAPE.num_bytes == 400
    assert SHAPE.kv_bytes_per_token == 16


def test_products_of_a_layer() -> None:
    assert SHAPE.gemm_shapes(3) == [(3, 4, 4), (3, 4, 8), (3, 8, 4)]


def test_rollout_of_two_responses_of_one_and_three_tokens() -> None:
    # Prefill of 4 tokens: 2 x 100 x 4 / 1000 = 0.8 (reading the weights: 0.4).
    # Step 2, one sequence with 2 + 1 cached tokens: (400 + 48) / 1000 = 0.448 (products: 0.2).
    # Step 3, 2 + 2 cached tokens: (400 + 64) / 1000 = 0.464.
    assert rollout_seconds(SHAPE, ROOF, [2, 2], [1, 3]) == pytest.approx(0.8 + 0.448 + 0.464)


def test_rollout_is_bound_by_products_where_memory_is_fast() -> None:
    fast = Roof(flops_per_second=1000.0, bytes_per_second=1e9)
    # 4 prompt tokens and one later step of 2 tokens: 0.2 s each.
    assert rollout_seconds(SHAPE, fast, [2, 2], [2, 2]) == pytest.approx(0.2 * (4 + 2))


def test_one_token_each_needs_the_prefill_alone() -> None:
    assert rollout_seconds(SHAPE, ROOF, [1], [1]) == pytest.approx(0.4)


def test_passes_of_ppo_and_its_lagrangian_form() -> None:
    # Update of three models: 3 x 2 + 3 x 6 = 24; with the three of scoring 30; plain PPO 20.
    assert pass_flops(1, 1, forwards=3, trainings=3) == 24
    assert pass_flops(1, 1, forwards=6, trainings=3) == 30
    assert pass_flops(1, 1, forwards=4, trainings=2) == 20
    assert pass_flops(100, 7, forwards=1, trainings=0) == 2 * 100 * 7


def test_sync_reads_and_writes_every_byte() -> None:
    assert sync_seconds(500, ROOF) == 1.0
