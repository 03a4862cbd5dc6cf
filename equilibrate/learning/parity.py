"""Whether generator and learner give the sampled tokens the same log-probs: the proof of a sync."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from equilibrate.errors import ParityError
from equilibrate.models.device import Dtype
from equilibrate.types import TokenBatch

TOLERANCES: Mapping[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.1}
"""Nats. In float32 the two agree on every token, so the largest gap tells. In bfloat16 each rounds
its own way, and only the mean tells: 0.003 in a sound run of the built-in world (0.4 with the
weights of before the training), 0.03 to 0.052 in sound runs of a real model of 135M at temperatures
of 0.6 and 0.7. Single tokens of a sound run are off by eight times the mean and more."""


class ParityGap(NamedTuple):
    """|log-prob of the generator - log-prob of the learner| over response tokens, nats."""

    mean: float
    largest: float

    def decisive(self, dtype: Dtype) -> float:
        """The one that `TOLERANCES` bounds."""
        return self.largest if dtype == "float32" else self.mean


def parity_gap(tokens: TokenBatch) -> ParityGap:
    gap = (tokens.rollout_log_probs - tokens.old_log_probs).abs()
    gap = torch.where(tokens.response_mask, gap, 0.0)
    num_tokens = max(1, int(tokens.response_mask.sum()))
    return ParityGap(mean=float(gap.double().sum()) / num_tokens, largest=float(gap.max()))


def require_parity(
    gap: ParityGap, *, dtype: Dtype, tolerance: float | None, iteration: int
) -> None:
    """Args: tolerance: nats; None takes that of the dtype.

    Raises: ParityError if the gap is above it, or is not a number.
    """
    allowed = TOLERANCES[dtype] if tolerance is None else tolerance
    found = gap.decisive(dtype)
    if not found <= allowed:
        which = "at most" if dtype == "float32" else "on average"
        raise ParityError(
            f"iteration {iteration}: generator and learner differ by {found:.2e} nats on the same "
            f"tokens (mean {gap.mean:.1e}, largest {gap.largest:.1e}), parity_tolerance allows "
            f"{allowed:.2e} {which} in {dtype}; the last weight sync is incomplete, or temperature "
            "or dtype differ between the two; where the gap is no larger than in the first "
            "iteration, raise parity_tolerance"
        )
