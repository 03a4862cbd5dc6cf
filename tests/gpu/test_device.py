from __future__ import annotations

import torch

from equilibrate.models.device import Accelerator


def test_autocast_narrows_products_and_leaves_parameters() -> None:
    accelerator = Accelerator("cuda", "bfloat16")
    accelerator.prepare(threads=1)
    layer = torch.nn.Linear(4, 4).to(accelerator.torch_device)
    with accelerator.autocast():
        product = layer(torch.ones(2, 4, device=accelerator.torch_device))
    assert product.dtype is torch.bfloat16
    assert layer.weight.dtype is torch.float32


def test_random_state_comes_back() -> None:
    accelerator = Accelerator("cuda", "float32")
    accelerator.prepare(threads=1)
    state = accelerator.rng_state()
    first = torch.rand(3, device=accelerator.torch_device)
    accelerator.set_rng_state(state)
    assert torch.equal(torch.rand(3, device=accelerator.torch_device), first)
