"""Settings of what is trained in place of all weights."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from equilibrate.config.base import Config, off_is_none


class AdapterConfig(Config):
    """A low-rank change of linear layers (LoRA), the only thing that is trained; a scorer's head is
    trained as well. It bears about ten times the learning rate of all weights."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    """The change is added alpha / rank times."""
    target_modules: tuple[str, ...] = ()
    """Last parts of the layers' names, as peft takes them, for example [q_proj, v_proj]; empty: all
    linear layers but the head."""

    @model_validator(mode="after")
    def _names_are_parts(self) -> Self:
        if odd := [name for name in self.target_modules if not name or "." in name]:
            raise ValueError(
                f"target_modules ({odd[0]!r}) must be the last part of a name; try q_proj"
            )
        return self


Adapter = Annotated[AdapterConfig | None, BeforeValidator(off_is_none)]
"""None, or `off`: all weights are trained."""
