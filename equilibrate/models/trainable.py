"""A model in training, whatever trains it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from equilibrate.config.training import TrainingGroup
from equilibrate.models.activations import checkpoint_activations, checkpointed_layers
from equilibrate.models.device import Accelerator
from equilibrate.models.lora import adapt, adapted_names


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


def prepare_training(
    module: Any, group: TrainingGroup, accelerator: Accelerator, *, seed: int
) -> None:
    """Make a `PolicyModel` or scorer what the settings train of it.

    Args: seed: of an adapter.
    Raises: ConfigError as `require_trainable`.
    """
    if group.activation_checkpointing:
        checkpoint_activations(module)  # tries the model as it is
    if group.adapter is not None:
        adapt(module, group.adapter, accelerator, seed=seed)


def require_trainable(model: Any, group: TrainingGroup) -> None:
    """Args: model: may be on the meta device.

    Raises: ConfigError if it lacks the layers that the settings need.
    """
    if group.adapter is not None:
        adapted_names(model, group.adapter)
    if group.activation_checkpointing:
        checkpointed_layers(model)
