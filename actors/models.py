"""Models as the workers see them: token ids in, logits or scores of every position out.

Rows are padded on the right, and a causal model's output at a token does not depend on what comes
after it. So no attention mask is built, and what stands at the padding is never read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.device import Accelerator
from equilibrate.errors import DataError
from equilibrate.ppo.log_probs import token_log_probs
from equilibrate.types import Rollout

SCORE_FILE = "equilibrate_score.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """From the head's raw output to the unit of the run: sign * (raw - bias) / scale."""

    sign: float = 1.0
    bias: float = 0.0
    scale: float = 1.0


def load_calibration(folder: str | Path) -> Calibration:
    """What the sidecar of a reward or cost model says; a folder without one is used as it is.

    Raises: DataError if the file holds something else than numbers with sign +-1 and scale > 0.
    """
    file = Path(folder) / SCORE_FILE
    if not file.is_file():
        return Calibration()
    try:
        entries = json.loads(file.read_text())
        known = {
            name: float(entries[name]) for name in ("sign", "bias", "scale") if name in entries
        }
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: {error}; sign, bias and scale must be numbers") from error
    calibration = Calibration(**known)
    if abs(calibration.sign) != 1.0 or not calibration.scale > 0:
        raise DataError(
            f"{file}: sign ({calibration.sign:g}) must be 1 or -1 and scale "
            f"({calibration.scale:g}) above 0; train the model again to get a valid file"
        )
    return calibration


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

    def __init__(self, model: Any, calibration: Calibration, accelerator: Accelerator) -> None:
        super().__init__()
        self.model = model
        self._calibration = calibration
        self._accelerator = accelerator

    def forward(self, token_ids: Tensor) -> Tensor:
        """Args: token_ids [B, T]. Returns: [B, T] float32, score of the prefix ending at each."""
        with self._accelerator.autocast():
            hidden = self.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        # The head stays float32: eight bits of mantissa are too few for a calibrated number.
        raw = self.model.score(hidden.float()).squeeze(-1)
        calibration = self._calibration
        return (raw - calibration.bias) * (calibration.sign / calibration.scale)


def load_policy(folder: str | Path, accelerator: Accelerator) -> PolicyModel:
    """The policy or its frozen reference, float32, without dropout."""
    model = _load(AutoModelForCausalLM, folder)
    return PolicyModel(model, accelerator).to(accelerator.torch_device).eval()


def load_scorer(folder: str | Path, accelerator: Accelerator) -> ScoreModel:
    """A reward or cost model with its calibration, float32, without dropout.

    Raises: DataError if the folder holds no causal model with one score per position.
    """
    model = _load(AutoModelForSequenceClassification, folder, num_labels=1)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise DataError(
            f"{folder}: {type(model).__name__} has no linear head named score; give a causal "
            "sequence-classification model with num_labels=1"
        )
    scorer = ScoreModel(model, load_calibration(folder), accelerator)
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
