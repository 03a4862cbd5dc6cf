"""Bytes of one process of a run, by what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from equilibrate.models.skeleton import build_empty
from equilibrate.planner.tracing import FLOAT, Traced

ADAM = 2 * FLOAT
"""Bytes of both moments of one number."""
LARGEST_BUCKET = 500_000_000
"""Numbers: `actors.engine` lets DeepSpeed have no larger one, and none larger than the model."""
LARGEST_GATHERED = 1_000_000_000
"""Numbers that stage 3 keeps whole at one time: DeepSpeed's `stage3_max_live_parameters`."""


OVERHEAD = 45_000_000
"""Bytes that libraries take with the first pass, whatever the model: measured on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at the worst moment, beside what the process held before it loaded a model."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    """Adam's moments and, where DeepSpeed shards them, its own copy of the weights."""
    activations: int = 0
    buffers: int = 0
    """What is sent between ranks, what libraries take, or the keys and values of a generator."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def parts(self) -> Mapping[str, int]:
        return asdict(self)


def trained(models: Sequence[Traced], *, zero_stage: int, num_ranks: int) -> Memory:
    """A rank that trains these models, one pass at a time.

    DeepSpeed 0.19 (ZeRO, Rajbhandari et al. 2020, section 5): stage 1 shards the optimizer and a
    copy of the weights, stage 2 the gradients too, stage 3 the weights as well, which it keeps
    whole where they are used soon. Buckets are allocated whole; stages 0 and 1 send
    gradients from where they are.
    """
    of_ranks = num_ranks if zero_stage else 1
    numbers = sum(model.trained for model in models)
    weights = sum(model.weights for model in models)
    gradients = sum(model.gradients for model in models)
    copy = FLOAT * numbers if zero_stage else 0
    bucket = FLOAT * max(min(model.trained, LARGEST_BUCKET) for model in models)
    gathered = FLOAT * max(min(model.parameters, LARGEST_GATHERED) for model in models)
    return Memory(
        weights=weights // num_ranks if zero_stage == 3 else weights,
        gradients=gradients // num_ranks if zero_stage >= 2 else gradients,
        optimizer=(ADAM * numbers + copy) // of_ranks,
        activations=max(model.activations for model in models),
        buffers=OVERHEAD
        + (bucket if num_ranks > 1 and zero_stage >= 2 else 0)
        + (gathered if zero_stage == 3 else 0),
    )


def read(models: Sequence[Traced]) -> Memory:
    """A process that runs these models forward, one after the other."""
    return Memory(
        weights=sum(model.weights for model in models),
        activations=max(model.activations for model in models),
        buffers=OVERHEAD,
    )


def generator(folder: str, *, dtype: str, cache: int | None, tokens: int) -> Memory:
    """One vLLM engine. Args: cache: bytes of keys and values; None: of one request of so many
    `tokens`, the least that it can do with: an engine takes what is free."""
    model = build_empty(folder, "policy")
    numbers = sum(parameter.numel() for parameter in model.parameters())
    width = FLOAT if dtype == "float32" else FLOAT // 2
    if cache is None:
        cache = kv_bytes_per_token(model.config.get_text_config(), width) * tokens
    return Memory(weights=width * numbers, buffers=cache)


def kv_bytes_per_token(config: Any, width: int) -> int:
    """Keys and values of all layers; an upper bound where some layers keep a window or none."""
    kv_heads, size = kv_shape(config)
    return 2 * width * int(config.num_hidden_layers) * kv_heads * size


def kv_shape(config: Any) -> tuple[int, int]:
    """Heads that keep keys and values, and the width of each."""
    heads: int = config.num_attention_heads
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    return kv_heads, size
