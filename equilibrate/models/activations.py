"""Activation checkpointing (Chen et al. 2016): layers keep their input and run once more in the
backward pass, a third more work for a fraction of the memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from equilibrate.errors import ConfigError
from equilibrate.models.heads import trial_tokens


def checkpoint_activations(module: Any) -> None:
    """For a `PolicyModel` or scorer. Losses and gradients stay what they were.

    transformers does so in training mode alone, in which dropout is on: here the layers are in it
    by themselves and what they consist of is not.

    Raises: ConfigError as `checkpointed_layers`, or if a layer drops something by itself.
    """
    model = module.model
    checkpointed_layers(model)
    tokens = trial_tokens(model)
    with torch.no_grad():
        before = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        enable_checkpointing(model)
        after = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    if not torch.equal(before, after):
        raise ConfigError(
            f"activation_checkpointing: the layers of a {type(model).__name__} drop activations in "
            "training; set it to false, or the dropouts of its config.json to 0"
        )


def enable_checkpointing(model: Any) -> None:
    """Whether or not something is dropped. Raises: ConfigError as `checkpointed_layers`."""
    # Nothing is drawn in a layer, so there is no random state to bring back.
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    for layer in checkpointed_layers(model):
        layer.training = True


def checkpointed_layers(model: Any) -> list[GradientCheckpointingLayer]:
    """Raises: ConfigError if transformers cannot do it for this kind of model."""
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"activation_checkpointing: transformers has none for a {type(model).__name__}; set it "
            "to false"
        )
    return layers
