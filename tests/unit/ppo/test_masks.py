import math

import torch

from equilibrate.ppo.masks import keep


def test_keep_replaces_dropped_entries_by_zero_in_each_tensor():
    mask = torch.tensor([True, False])
    first, second = keep(mask, torch.tensor([1.0, math.nan]), torch.tensor([2.0, math.inf]))
    assert first.tolist() == [1.0, 0.0]
    assert second.tolist() == [2.0, 0.0]
