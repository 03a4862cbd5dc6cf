import math

import pytest
import torch

from equilibrate.tensors import masked_sum, require_same_shape


def test_unequal_shapes_are_named():
    with pytest.raises(ValueError, match=r"a \[2, 3\], b \[2\]"):
        require_same_shape(a=torch.zeros(2, 3), b=torch.zeros(2))


def test_equal_shapes_pass_whatever_the_dtype():
    require_same_shape(a=torch.zeros(2), b=torch.ones(2, dtype=torch.bool))


def test_masked_sum_ignores_dropped_nan():
    assert masked_sum(torch.tensor([1.0, math.nan, 3.0]), torch.tensor([True, False, True])) == 4.0
