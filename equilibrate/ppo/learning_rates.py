"""How learning rates change over a run."""

from __future__ import annotations

import math
from typing import Literal

COOLDOWN_SHARE = 0.3
"""Share of a run in which the learning rate falls, under that schedule."""


def schedule(name: Literal["constant", "linear", "cosine", "cooldown"], progress: float) -> float:
    """Share of the learning rate after this share of the run; 1 at its start, 0 at its end."""
    if name == "constant":
        return 1.0
    if name == "linear":
        return max(0.0, 1.0 - progress)
    if name == "cooldown":
        progress = max(0.0, (progress - 1.0) / COOLDOWN_SHARE + 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
