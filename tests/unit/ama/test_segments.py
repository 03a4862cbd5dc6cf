import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.ama.segments import pivot_threshold, segment_ids, segment_means

MASK = torch.tensor([[False, True, True, True, False, True, False]])
JUMPS = torch.tensor([[9.0, 0.0, 1.0, 3.0, 9.0, 0.0, 9.0]])
SIGNAL = torch.tensor([[8.0, 1.0, 2.0, 5.0, 8.0, 7.0, 8.0]])


def at(value):
    return torch.tensor([[value]])


def test_thresholds_by_hand():
    # response jumps 0, 1, 3, 0: mean 1, variance (1 + 0 + 4 + 1) / 4 = 1.5
    std = pivot_threshold("std", 2.0, JUMPS, MASK).item()
    assert std == pytest.approx(1 + 2 * math.sqrt(1.5))
    assert pivot_threshold("quantile", 0.5, JUMPS, MASK).item() == 0.5  # between 0 and 1
    assert pivot_threshold("const", 0.7, JUMPS, MASK).item() == pytest.approx(0.7)


def test_equal_jumps_make_no_pivot_by_std():
    jumps = torch.full((1, 4), 0.5)
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert not segment_ids(jumps, mask, pivot_threshold("std", 1.0, jumps, mask)).any()


def test_a_jump_starts_a_segment_and_a_hole_does_not():
    # pivot at column 3 alone; the hole's jump of 9 does not cut
    assert segment_ids(JUMPS, MASK, at(2.0)).tolist() == [[0, 0, 0, 1, 1, 1, 1]]


def test_a_jump_equal_to_the_threshold_does_not_cut():
    assert not segment_ids(JUMPS, MASK, at(3.0)).any()


def test_segment_means_by_hand():
    means = segment_means(SIGNAL, MASK, segment_ids(JUMPS, MASK, at(2.0)))
    # (1 + 2) / 2 and (5 + 7) / 2
    assert means.tolist() == [[0, 1.5, 1.5, 6, 0, 6, 0]]


seeds = st.integers(0, 9999)


def random_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    signal, jumps = torch.randn(2, 4, 8, generator=generator, dtype=torch.float64)
    return signal, jumps.abs(), torch.rand(4, 8, generator=generator) < 0.7


@given(seeds)
def test_minus_infinity_gives_every_token_its_own_segment(seed):
    signal, jumps, mask = random_batch(seed)
    means = segment_means(signal, mask, segment_ids(jumps, mask, at(-math.inf)))
    assert torch.equal(means, torch.where(mask, signal, 0.0))


@given(seeds)
def test_plus_infinity_gives_one_segment_per_response(seed):
    signal, jumps, mask = random_batch(seed)
    means = segment_means(signal, mask, segment_ids(jumps, mask, at(math.inf)))
    for one, kept, row in zip(means, mask, signal, strict=True):
        if kept.any():
            torch.testing.assert_close(one[kept], row[kept].mean().expand(int(kept.sum())))


@given(seeds, st.floats(0, 3))
def test_segments_preserve_the_sum_of_the_signal(seed, threshold):
    signal, jumps, mask = random_batch(seed)
    means = segment_means(signal, mask, segment_ids(jumps, mask, at(threshold)))
    torch.testing.assert_close(means.sum(1), torch.where(mask, signal, 0.0).sum(1))


@pytest.mark.parametrize("rule", ["std", "quantile", "const"])
def test_empty_rows_and_nan_outside_are_safe(rule):
    mask = torch.cat([MASK, torch.zeros_like(MASK)])
    jumps = torch.where(mask, JUMPS, math.nan)
    signal = torch.where(mask, SIGNAL, math.nan)
    threshold = pivot_threshold(rule, 0.5, jumps, mask)
    assert torch.isfinite(threshold[0])
    means = segment_means(signal, mask, segment_ids(jumps, mask, threshold))
    assert torch.isfinite(means).all()
    assert not means[1].any()


def test_shapes_are_checked():
    for call in (
        lambda: pivot_threshold("std", 1.0, JUMPS, MASK[:, 1:]),
        lambda: segment_ids(JUMPS, MASK[:, 1:], at(1.0)),
        lambda: segment_means(SIGNAL, MASK, torch.zeros(1, 2, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match="shapes must be equal"):
            call()
