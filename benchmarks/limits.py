"""What the machine cannot beat: least seconds that a job takes, from its sizes and two rates.

The formulas leave things out (attention products, padding, fixed costs of a step), so the true
limit is never below them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PHASES = ("rollout", "score", "update", "sync")
"""Of an iteration, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """Rates that this machine reached in this run."""

    flops_per_second: float
    """Matrix products at the shapes of the job."""
    bytes_per_second: float
    """Memory copy, reads and writes both counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a causal language model that its speed depends on."""

    num_parameters: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    kv_width: int
    """Key-value heads times their width."""
    bytes_per_number: int = 4

    @property
    def num_bytes(self) -> int:
        return self.num_parameters * self.bytes_per_number

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.kv_width * self.bytes_per_number

    def gemm_shapes(self, num_tokens: int) -> list[tuple[int, int, int]]:
        """The products [m, k] x [k, n] of one layer: attention, up and down projection."""
        hidden, wide = self.hidden_size, self.intermediate_size
        return [(num_tokens, k, n) for k, n in ((hidden, hidden), (hidden, wide), (wide, hidden))]


def shape_of(folder: str | Path) -> ModelShape:
    """Of a Hugging Face model folder; parameters that are shared count once."""
    from equilibrate.models.skeleton import skeleton
    from equilibrate.planner.memory import kv_shape

    model = skeleton(folder, "policy")
    config = model.config
    return ModelShape(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        kv_width=math.prod(kv_shape(config)),
    )


def rollout_seconds(
    shape: ModelShape, roof: Roof, prompt_lengths: Sequence[int], response_lengths: Sequence[int]
) -> float:
    """One batch, all of it started together.

    The prefill gives each response its first token; every later step reads the weights and the
    keys and values of the sequences that still run, and multiplies each of their tokens:

        step >= max((S + KV bytes) / W, 2 N B / F)
    """
    flops, bandwidth = roof.flops_per_second, roof.bytes_per_second
    per_token = 2 * shape.num_parameters / flops
    seconds = max(shape.num_bytes / bandwidth, per_token * sum(prompt_lengths))
    for step in range(2, max(response_lengths) + 1):
        cached = [
            prompt + step - 1
            for prompt, response in zip(prompt_lengths, response_lengths, strict=True)
            if response >= step
        ]
        num_bytes = shape.num_bytes + shape.kv_bytes_per_token * sum(cached)
        seconds += max(num_bytes / bandwidth, per_token * len(cached))
    return seconds


def pass_flops(num_parameters: int, num_tokens: int, *, forwards: int, trainings: int) -> int:
    """2 N D for each forward pass, 6 N D for each forward and backward.

    One update of PPO-Lagrangian has 3 forwards and 3 trainings per epoch: 24 N D with one epoch.
    Scoring adds 3 forwards: 30 N D for a whole iteration.
    """
    return (2 * forwards + 6 * trainings) * num_parameters * num_tokens


def sync_seconds(num_bytes: int, roof: Roof) -> float:
    """Every byte is read once and written once: 2 S / W."""
    return 2 * num_bytes / roof.bytes_per_second


def phase_seconds(
    shape: ModelShape,
    roof: Roof,
    prompt_lengths: Sequence[int],
    response_lengths: Sequence[int],
    *,
    scorers: int,
    critics: int,
    epochs: int,
    is_only_step: bool = False,
) -> dict[str, float]:
    """Least seconds of each phase of an iteration: 30 N D with a constraint, one epoch, two steps.

    Args:
        scorers: 1 with a reward model alone, 2 with a cost model.
        critics: 0 without any.
        is_only_step: the update is one step on all rows, and needs no pass before it.
    """
    num_tokens = sum(prompt_lengths) + sum(response_lengths)
    models = 1 + critics

    def seconds(**passes: int) -> float:
        return pass_flops(shape.num_parameters, num_tokens, **passes) / roof.flops_per_second

    return {
        "rollout": rollout_seconds(shape, roof, prompt_lengths, response_lengths),
        "score": seconds(forwards=1 + scorers, trainings=0),
        "update": seconds(forwards=0 if is_only_step else models, trainings=models * epochs),
        "sync": sync_seconds(shape.num_bytes, roof),
    }
