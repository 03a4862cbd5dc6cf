"""An average of the policy over its last iterations: the last one alone wanders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

AVERAGE_FILE = "average.safetensors"


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, once an iteration, float32 on the CPU.

    One rank keeps it; the others take part where the weights are gathered.
    Source: exponential averages of iterates (Polyak and Juditsky 1992 average them all).
    """

    def __init__(self, decay: float, weights: Iterable[tuple[str, Tensor]], *, keeps: bool) -> None:
        """Args:
        decay: in [0, 1), per iteration; 0.9 looks back about 10 iterations.
        weights: names and tensors to begin with; each needs to be whole only in its turn.
        keeps: whether this rank keeps the average.
        """
        self._decay = decay
        self._keeps = keeps
        self._average: dict[str, Tensor] = {}
        for name, tensor in weights:
            if keeps:
                self._average[name] = tensor.detach().to("cpu", torch.float32, copy=True)

    def update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            if self._keeps:
                self._average[name].lerp_(tensor.detach().to("cpu", torch.float32), 1 - self._decay)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Nothing on ranks that do not keep it."""
        yield from self._average.items()

    def save(self, folder: Path) -> None:
        if self._keeps:
            save_file(self._average, folder / AVERAGE_FILE)

    def load(self, folder: Path) -> None:
        if self._keeps:
            saved = load_file(folder / AVERAGE_FILE)
            # In the model's own order, in which weights are packed.
            self._average = {name: saved[name] for name in self._average}
