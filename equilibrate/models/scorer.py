"""A reward or cost model as the workers see it: token ids in, a score of every prefix out.

Rows are padded on the right, as for `models.policy`, and need no attention mask.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equilibrate.models.device import Accelerator
from equilibrate.models.sidecar import ScorerSidecar


class ScoreModel(nn.Module):
    """A reward or cost model, and the critic that starts as its copy: one score per prefix."""

    def __init__(self, model: Any, sidecar: ScorerSidecar, accelerator: Accelerator) -> None:
        super().__init__()
        self.model = model
        self._scale = sidecar.scale
        # Zero is the boundary everywhere else.
        self._bias = sidecar.bias - sidecar.threshold
        self._accelerator = accelerator

    def forward(self, token_ids: Tensor) -> Tensor:
        """Args: token_ids [B, T].

        Returns: [B, T] float32, score of the prefix that ends at each token, minus the threshold.
        """
        with self._accelerator.autocast():
            hidden = self.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        # The head stays float32: eight bits of mantissa are too few for a calibrated number.
        raw: Tensor = self.model.score(hidden.float()).squeeze(-1)
        return self._scale * raw + self._bias
