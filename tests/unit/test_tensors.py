import math

import pytest
import torch

from equilibrate.tensors import keep, last_kept, masked_sum, require_same_shape


def test_unequal_shapes_are_named():
    with pytest.raises(ValueError, match=r"a \[2, 3\], b \[2\]"):
        require_same_shape(a=torch.zeros(2, 3), b=torch.zeros(2))


def test_equal_shapes_pass_whatever_the_dtype():
    require_same_shape(a=torch.zeros(2), b=torch.ones(2, dtype=torch.bool))


def test_masked_sum_ignores_dropped_nan():
    assert masked_sum(torch.tensor([1.0, math.nan, 3.0]), torch.tensor([True, False, True])) == 4.0


def test_last_kept_finds_the_end_of_each_row_by_its_mask():
    mask = torch.tensor(
        [
            [False, True, True, False],  # right padding
            [True, False, False, True],  # a hole
            [False, False, False, False],
            [True, False, False, False],
        ]
    )
    expected = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    assert torch.equal(last_kept(mask), expected)


def test_keep_replaces_dropped_entries_by_zero_in_each_tensor():
    mask = torch.tensor([True, False])
    first, second = keep(mask, torch.tensor([1.0, math.nan]), torch.tensor([2.0, math.inf]))
    assert first.tolist() == [1.0, 0.0]
    assert second.tolist() == [2.0, 0.0]
