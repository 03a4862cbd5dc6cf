"""Models as the workers see them: token ids in, logits or scores of every position out.

Rows are padded on the right, and a causal model's output at a token does not depend on what comes
after it. So no attention mask is built, and what stands at the padding is never read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.device import Accelerator
from equilibrate.errors import DataError
from equilibrate.ppo.log_probs import token_log_probs
from equilibrate.preference.sidecar import ScorerKind, ScorerSidecar, read_sidecar
from equilibrate.types import Rollout


class PolicyModel(nn.Module):
    """A causal language model that gives logits of the last positions only."""

    def __init__(self, model: Any, accelerator: Accelerator) -> None:
        super().__init__()
        self.model = model
        self._accelerator = accelerator

    def forward(self, token_ids: Tensor, num_logits: int) -> Tensor:
        """Args: token_ids [B, T]. Returns: [B, num_logits, V], for the last positions of T."""
        with self._accelerator.autocast():
            return self.model(
                input_ids=token_ids, use_cache=False, logits_to_keep=num_logits
            ).logits


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
        raw = self.model.score(hidden.float()).squeeze(-1)
        return self._scale * raw + self._bias


def load_policy(folder: str | Path, accelerator: Accelerator) -> PolicyModel:
    """The policy or its frozen reference, float32, without dropout."""
    model = _load(AutoModelForCausalLM, folder)
    return PolicyModel(model, accelerator).to(accelerator.torch_device).eval()


def load_scorer(folder: str | Path, kind: ScorerKind, accelerator: Accelerator) -> ScoreModel:
    """A reward or cost model in the units its sidecar states, float32, without dropout.

    Raises: DataError if the folder or its sidecar is missing or of another kind, or if it is not a
        causal model with one score per position.
    """
    model = _load(AutoModelForSequenceClassification, folder, num_labels=1)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise DataError(
            f"{folder}: {type(model).__name__} has no linear head named score; give a causal "
            "sequence-classification model with num_labels=1"
        )
    scorer = ScoreModel(model, read_sidecar(Path(folder), kind=kind), accelerator)
    return scorer.to(accelerator.torch_device).eval()


def first_response_token(rollout: Rollout) -> int:
    """Position of the first sampled token, at least 1; 1 if nothing was sampled."""
    return max(1, int(rollout.response_mask.argmax()))


def suffix_log_probs(logits: Tensor, token_ids: Tensor, *, temperature: float) -> Tensor:
    """Log-probs of the tokens that the given logits predict.

    Args: logits [B, K, V] of the last K positions; token_ids [B, T].
    Returns: [B, T], nats; 0 at the first T - K + 1 tokens.
    """
    num_logits = logits.shape[1]
    log_probs = token_log_probs(logits, token_ids[:, -num_logits:], temperature=temperature)
    return torch.nn.functional.pad(log_probs, (token_ids.shape[1] - num_logits, 0))


def _load(kind: Any, folder: str | Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            attn_implementation="sdpa",
            **options,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a model folder ({error}); check the path") from error
