"""Models that are only read."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from equilibrate.models.device import Accelerator

M = TypeVar("M", bound=nn.Module)


def frozen(module: M, accelerator: Accelerator) -> M:
    """A `PolicyModel` or scorer without gradients, its linear layers held in the run's dtype.

    Autocast rounds a layer's weights before each product: held rounded they give the same bits, in
    half the memory and without the rounding. What it leaves in float32 stays so, and the head too,
    which may be the embeddings.
    """
    model: Any = module.model
    module.requires_grad_(False)
    if accelerator.dtype == "float32":
        return module
    narrowed = {
        parameter
        for name in linear_names(model)
        for parameter in model.get_submodule(name).parameters(recurse=False)
    }
    for parameter in module.parameters():
        # All are views of the file: as long as one of them is, the whole file is in memory.
        is_narrow = parameter in narrowed
        parameter.data = (accelerator.narrow if is_narrow else torch.clone)(parameter.data)
    return module


def share_frozen(module: nn.Module, holder: nn.Module) -> None:
    """Let frozen weights that another model of this process holds too be that model's: those of one
    trunk under several adapters, or embeddings that no training moved.

    Args: module, holder: their parameters are on one device.
    """
    held = dict(holder.named_parameters())
    for name, parameter in module.named_parameters():
        other = held.get(name)
        if other is None or parameter.requires_grad or other.requires_grad:
            continue
        if other.dtype == parameter.dtype and torch.equal(other, parameter):
            parameter.data = other.data


def linear_names(model: Any) -> list[str]:
    """The linear layers of a model's trunk, by its own names: a head is none of them."""
    trunk = f"{model.base_model_prefix}."
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith(trunk)
    ]
