"""A model in training, whatever trains it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Trainable(Protocol):
    """A model with its optimizer; gradients of all ranks are added up, not averaged."""

    def __call__(self, *inputs: Any) -> Any: ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of this rank's part; `is_last` closes the minibatch."""

    def step(self) -> float:
        """Clip and apply; returns the norm before clipping, nan if nothing was applied."""

    def set_learning_rate(self, learning_rate: float) -> None: ...

    def discard(self) -> None:
        """Forget the gradients of an unfinished minibatch."""
