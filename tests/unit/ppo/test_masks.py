import math

import torch

from equilibrate.ppo.masks import keep, last_kept


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
