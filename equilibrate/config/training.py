"""How a model is trained: over which processes, and which of its weights."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from equilibrate.config.base import Config, WorkerGroup, off_is_none
from equilibrate.config.identity import Mark


class AdapterConfig(Config):
    """A low-rank change of linear layers (LoRA), the only thing that is trained; a scorer's head is
    trained as well. It bears about ten times the learning rate of all weights."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    """The change is added alpha / rank times."""
    target_modules: tuple[str, ...] = ()
    """Last parts of the layers' names, as peft takes them, for example [q_proj, v_proj]; empty: all
    linear layers but the head."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @model_validator(mode="after")
    def _names_are_parts(self) -> Self:
        if odd := [name for name in self.target_modules if not name or "." in name]:
            raise ValueError(
                f"target_modules ({odd[0]!r}) must be the last part of a name; try q_proj"
            )
        return self


class TrainingGroup(WorkerGroup):
    """The processes that train a model together."""

    adapter: Annotated[AdapterConfig | None, BeforeValidator(off_is_none)] = None
    """Empty: all weights are trained."""
    activation_checkpointing: Annotated[bool, Mark.CARRIES_OUT] = False
    """Layers run once more in the backward pass in place of being kept: a third more work, and
    memory for the activations of one layer and the inputs of the others."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    max_tokens_per_batch: int = Field(8192, gt=0)
    """Padded tokens of one forward and backward pass on one worker, pretraining text included; a
    longer row comes alone."""

    @property
    def asks_for_layers(self) -> bool:
        """Whether only models with layers of certain kinds can be trained so."""
        return self.adapter is not None or self.activation_checkpointing
