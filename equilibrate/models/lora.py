"""Low-rank adapters in training: the weights below stay as they are.

LoRA (Hu et al. 2021, eq. 3): y = x W^T + (alpha / rank) (x A^T) B^T, A drawn as peft draws it and B
zero, so that training begins at the model itself. Layers keep their names and weights theirs:
what reads a model by its names finds them, and nothing has to know which layers are adapted but
what asks for `merged` weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibrate.config.training import AdapterConfig
from equilibrate.errors import ConfigError
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import ADAPTER_FILE, ADAPTER_WEIGHTS
from equilibrate.models.frozen import frozen, linear_names

_PARTS = ("lora_A", "lora_B")
_PREFIX = "base_model.model."
"""Before the name of a module in an adapter's files."""


class LoraLinear(nn.Linear):
    """A linear layer whose own weight is frozen."""

    def __init__(
        self, linear: nn.Linear, adapter: AdapterConfig, generator: torch.Generator
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        bound = 1 / math.sqrt(self.in_features)  # kaiming_uniform_ with a = sqrt(5)
        drawn = torch.empty(adapter.rank, self.in_features).uniform_(
            -bound, bound, generator=generator
        )
        device = linear.weight.device
        self.lora_A = nn.Parameter(drawn.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, adapter.rank, device=device))
        self.scale = adapter.scale

    def forward(self, input: Tensor) -> Tensor:
        own = F.linear(input, self.weight, self.bias)
        low = F.linear(input, self.lora_A)
        # One product that adds: the change is never held by itself.
        added = torch.addmm(
            own.flatten(0, -2), low.flatten(0, -2), self.lora_B.t(), alpha=self.scale
        )
        return added.view_as(own)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """[out, in] float32: the weight of a plain layer that gives the same."""
        return _merged(self.weight, self.lora_A, self.lora_B, self.scale)


def _merged(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    return torch.addmm(weight.float(), lora_B, lora_A, alpha=scale)


def adapt(module: Any, adapter: AdapterConfig, accelerator: Accelerator, *, seed: int) -> None:
    """Freeze the model of a `PolicyModel` or scorer, but for its score, and give it an adapter.

    Raises: ConfigError as `adapted_names`.
    """
    model = module.model
    names = adapted_names(model, adapter)
    frozen(module, accelerator)
    if isinstance(getattr(model, "score", None), nn.Linear):
        model.score.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        parent, _, last = name.rpartition(".")
        layer = LoraLinear(model.get_submodule(name), adapter, generator)
        setattr(model.get_submodule(parent), last, layer)


def adapted_names(model: Any, adapter: AdapterConfig) -> list[str]:
    """The layers that get an adapter, by the model's own names.

    Raises: ConfigError where there are none, or none of one of the given names.
    """
    linear = linear_names(model)
    if not linear:
        raise ConfigError(
            f"adapter: a {type(model).__name__} has no linear layers of the kind that adapters "
            "change; set adapter=off"
        )
    if not adapter.target_modules:
        return linear
    known = {name.rpartition(".")[2] for name in linear}
    if unknown := sorted(set(adapter.target_modules) - known):
        raise ConfigError(
            f"adapter.target_modules ({unknown[0]!r}): a {type(model).__name__} has no such layer; "
            f"it has {', '.join(sorted(known))}"
        )
    return [name for name in linear if name.rpartition(".")[2] in adapter.target_modules]


def num_trained(model: Any, adapter: AdapterConfig) -> int:
    """Numbers that training moves: those of the adapter, and a scorer's head.

    Raises: ConfigError as `adapted_names`.
    """
    score = getattr(model, "score", None)
    head: int = score.weight.numel() if isinstance(score, nn.Linear) else 0
    return head + sum(math.prod(shape) for shape in part_shapes(model, adapter).values())


def part_shapes(model: Any, adapter: AdapterConfig) -> dict[str, tuple[int, int]]:
    """Name and shape of every part of a policy's adapter, by the model's own names.

    Raises: ConfigError as `adapted_names`.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for name in adapted_names(model, adapter):
        layer = model.get_submodule(name)
        shapes[f"{name}.lora_A"] = (adapter.rank, layer.in_features)
        shapes[f"{name}.lora_B"] = (layer.out_features, adapter.rank)
    return shapes


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition(".")[2] in _PARTS


Whole = Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]]
"""Holds sharded parameters whole while it is entered."""


def merged_weights(
    module: nn.Module, whole: Whole = lambda _: nullcontext()
) -> Iterator[tuple[str, Tensor]]:
    """Weights of plain layers that give the same, by the names without an adapter: W + scale B A in
    float32 where there is one.

    A tensor is whole only until the next one is asked for, and must not be written to.
    """
    layers = {
        f"{name}.weight": layer
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLinear)
    }
    for name, parameter in module.named_parameters():
        if is_adapter(name):
            continue
        layer = layers.get(name)
        parts = [] if layer is None else [layer.lora_A, layer.lora_B]
        with whole([parameter, *parts]):
            yield name, parameter.detach() if layer is None else layer.merged()


@torch.no_grad()
def with_adapter(
    named_weights: Iterable[tuple[str, Tensor]],
    parts: Mapping[str, Tensor],
    adapter: AdapterConfig,
    accelerator: Accelerator,
) -> Iterator[tuple[str, Tensor]]:
    """As `merged_weights`, bit by bit on the same kind of processor, of a model without an adapter
    and the parts of one by the same names.

    Args: accelerator: on which they are merged, and of the dtype in which the frozen layers of that
        adapter were held.
    """
    device = accelerator.torch_device
    for name, weight in named_weights:
        layer = name.removesuffix(".weight")
        lora = [parts.get(f"{layer}.{part}") for part in _PARTS]
        if lora[0] is None or lora[1] is None:
            yield name, weight.detach()
        else:
            own = accelerator.narrow(weight.detach().to(device))
            yield name, _merged(own, lora[0].to(device), lora[1].to(device), adapter.scale)


def write_adapter(
    folder: Path,
    trained: Mapping[str, Tensor],
    adapter: AdapterConfig,
    *,
    base: str,
) -> None:
    """A folder as peft saves one.

    Args:
        trained: by the model's own names: the parts of the adapter, and a scorer's head.
        base: the model folder that it belongs to.
    """
    from safetensors.torch import save_file

    named = {
        _PREFIX + (f"{name}.weight" if is_adapter(name) else name): tensor.contiguous()
        for name, tensor in trained.items()
    }
    is_scorer = any(not is_adapter(name) for name in trained)
    entries = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if is_scorer else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-2] for name in trained if is_adapter(name)}),
        "modules_to_save": ["score"] if is_scorer else None,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(named, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (folder / ADAPTER_FILE).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
