from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from equilibrate.errors import ResourceError
from equilibrate.models.device import Accelerator


def test_each_device_has_its_collective() -> None:
    assert Accelerator("cpu", "float32").collective == "gloo"
    assert Accelerator("cuda", "float32").collective == "nccl"


def test_autocast_narrows_products_and_nothing_else() -> None:
    weights = torch.ones(2, 2, requires_grad=True)
    with Accelerator("cpu", "bfloat16").autocast():
        assert (weights @ weights).dtype == torch.bfloat16
        assert weights.dtype == torch.float32
    with Accelerator("cpu", "float32").autocast():
        assert (weights @ weights).dtype == torch.float32


def test_random_state_comes_back_for_all_three_generators() -> None:
    accelerator = Accelerator("cpu", "float32")

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    state = accelerator.rng_state()
    first = draw()
    assert draw() != first
    accelerator.set_rng_state(state)
    assert draw() == first


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_named_with_the_way_out() -> None:
    with pytest.raises(ResourceError, match="set device: cpu"):
        Accelerator("cuda", "float32").prepare(threads=1)
