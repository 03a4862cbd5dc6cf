import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.ama.baselines import baseline_sums, batch_mean, constant, sequence_mean

SIGNAL = torch.tensor([[1.0, math.nan, 4.0], [-2.0, 7.0, 9.0]])
MASK = torch.tensor([[True, False, True], [True, False, False]])


def test_constant_broadcasts():
    assert constant(SIGNAL, 0.5).tolist() == [[0.5]]


def test_batch_mean_by_hand():
    total, count = baseline_sums(SIGNAL, MASK)
    assert (total.item(), count.item()) == (3.0, 3.0)
    assert batch_mean(total, count, SIGNAL).tolist() == [[1.0]]  # (1 + 4 - 2) / 3


@given(st.integers(0, 999), st.integers(1, 5))
def test_batch_mean_is_the_same_on_any_number_of_ranks(seed, num_ranks):
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(6, 4, generator=generator)
    mask = torch.rand(6, 4, generator=generator) < 0.5
    parts = [baseline_sums(signal[r::num_ranks], mask[r::num_ranks]) for r in range(num_ranks)]
    total, count = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    whole = batch_mean(*baseline_sums(signal, mask), signal)
    assert torch.equal(batch_mean(total, count, signal), whole)


def test_sequence_mean_by_hand():
    assert sequence_mean(SIGNAL, MASK).tolist() == [[2.5], [-2.0]]


def test_nothing_kept_gives_zero():
    empty = torch.zeros_like(MASK)
    assert batch_mean(*baseline_sums(SIGNAL, empty), SIGNAL).tolist() == [[0.0]]
    assert sequence_mean(SIGNAL, empty).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("function", [baseline_sums, sequence_mean])
def test_shapes_are_checked(function):
    with pytest.raises(ValueError, match="shapes must be equal"):
        function(SIGNAL, MASK[:1])
