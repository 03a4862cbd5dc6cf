"""What tensors of a loaded model are called in a model folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, revert_weight_conversion


def tied_names(model: nn.Module) -> dict[str, str]:
    """Second names of shared parameters, each with the name that `named_parameters` gives it."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            aliases[name] = known
    return aliases


def folder_tensors(
    model: Any, named_tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Parameters under the names and in the form that `save_pretrained` would give them.

    Mixtures of experts, for example, hold all experts of a layer in one tensor, folders hold each.

    Args: named_tensors: of the model, by its own names; each needs to be whole only until the next
        is asked for, unless the folder joins what the model keeps apart.
    """
    if _joins_tensors(model):
        whole = {name: tensor.clone() for name, tensor in named_tensors}
        yield from revert_weight_conversion(model, whole).items()
        return
    for name, tensor in named_tensors:
        yield from revert_weight_conversion(model, {name: tensor}).items()


def folder_aliases(model: Any) -> dict[str, str]:
    """`tied_names` by the names of `folder_tensors`."""
    return {
        _folder_name(model, alias): _folder_name(model, name)
        for alias, name in tied_names(model).items()
    }


def sent_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of all that an update of this policy's generators must contain.

    Args: model: may be on the meta device.
    """
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in folder_tensors(model, model.named_parameters())
    }
    return shapes | {alias: shapes[name] for alias, name in folder_aliases(model).items()}


def _folder_name(model: Any, name: str) -> str:
    shape = torch.empty_like(model.get_parameter(name), device="meta")
    found: list[str] = list(revert_weight_conversion(model, {name: shape}))
    return found[0]


def _joins_tensors(model: Any) -> bool:
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        conversions = get_model_conversion_mapping(model, add_legacy=False)
    return any(
        isinstance(conversion, WeightConverter) and len(conversion.target_patterns) > 1
        for conversion in conversions
    )
