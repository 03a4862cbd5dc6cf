"""A reward or cost model as the workers see it: token ids in, a score of every prefix out.

Rows are padded on the right, as for `models.policy`, and need no attention mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equilibrate.models.device import Accelerator
from equilibrate.models.sidecar import ScorerSidecar


class TwinScoreModel(nn.Module):
    """Several scorers on one trunk: a score per prefix and head."""

    def __init__(
        self, model: Any, sidecars: Sequence[ScorerSidecar], accelerator: Accelerator
    ) -> None:
        super().__init__()
        self.model = model
        self._scales: Tensor
        self._biases: Tensor
        # Zero is the boundary everywhere else.
        biases = [sidecar.bias - sidecar.threshold for sidecar in sidecars]
        scales = torch.tensor([sidecar.scale for sidecar in sidecars], dtype=torch.float32)
        self.register_buffer("_scales", scales, persistent=False)
        self.register_buffer("_biases", torch.tensor(biases).float(), persistent=False)
        self._accelerator = accelerator

    def forward(self, token_ids: Tensor) -> Tensor:
        """Args: token_ids [B, T].

        Returns: [B, T, H] float32, scores of the prefix that ends at each token, minus the
            threshold of each head.
        """
        with self._accelerator.autocast():
            hidden = self.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        # The heads stay float32: eight bits of mantissa are too few for a calibrated number.
        raw: Tensor = self.model.score(hidden.float())
        return self._scales * raw + self._biases


class ScoreModel(TwinScoreModel):
    """A reward or cost model, and the critic that starts as its copy: one score per prefix."""

    def __init__(self, model: Any, sidecar: ScorerSidecar, accelerator: Accelerator) -> None:
        super().__init__(model, [sidecar], accelerator)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Args: token_ids [B, T].

        Returns: [B, T] float32, score of the prefix that ends at each token, minus the threshold.
        """
        return super().forward(token_ids).squeeze(-1)
