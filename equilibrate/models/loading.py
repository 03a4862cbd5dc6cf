"""Models as the workers see them: token ids in, log-probs or scores of tokens out.

Rows are padded on the right, and a causal model's output at a token does not depend on what comes
after it. So no attention mask is built, and what stands at the padding is never read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from equilibrate.errors import DataError
from equilibrate.models.chunked import chunked_log_probs
from equilibrate.models.device import Accelerator
from equilibrate.models.log_probs import token_entropies, token_log_probs
from equilibrate.models.sidecar import ScorerSidecar, read_sidecar
from equilibrate.types import ScorerKind

WIDE_ATTENTION = "sdpa_float32"


def _attend_in_float32(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """For `Accelerator.has_slow_narrow_attention`: transformers' own, outside of autocast."""
    with torch.autocast("cpu", enabled=False):
        states, weights = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return states.to(value.dtype), weights


AttentionInterface.register(WIDE_ATTENTION, _attend_in_float32)
AttentionMaskInterface.register(WIDE_ATTENTION, sdpa_mask)


class PolicyModel(nn.Module):
    """A causal language model that says how likely chosen tokens are.

    The head is applied to those tokens only and a chunk at a time, inside `forward`: there alone
    ZeRO-3 holds its whole weight.
    """

    def __init__(self, model: Any, accelerator: Accelerator) -> None:
        super().__init__()
        self.model = model
        self._accelerator = accelerator
        self._is_head_linear = is_head_linear(model)

    def forward(
        self,
        token_ids: Tensor,
        mask: Tensor,
        temperature: float,
        num_texts: int = 0,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the tokens in the mask.

        Args:
            token_ids: [B, T] int64.
            mask: [B, T] bool.
            temperature: > 0, the one that sampled the rows.
            num_texts: so many rows at the end are text that nobody sampled: temperature 1.
            targets: [B, T] int64, the tokens whose log-probs are wanted in place of `token_ids`,
                each after the row's own tokens before it.
        Returns: each [B, T], nats, float32; 0 outside the mask.
        """
        with self._accelerator.autocast():
            if self._is_head_linear:
                outputs = self.model.base_model(input_ids=token_ids, use_cache=False)
                states = self._accelerator.narrow(outputs.last_hidden_state)
            else:
                states = self.model(input_ids=token_ids, use_cache=False).logits
        num_sampled = len(token_ids) - num_texts
        wanted = token_ids if targets is None else targets
        parts = [
            self._log_probs(states[rows], wanted[rows], mask[rows], tempered)
            for rows, tempered in (
                (slice(num_sampled), temperature),
                (slice(num_sampled, None), 1.0),
            )
            if len(token_ids[rows])
        ]
        log_probs, entropies = zip(*parts, strict=True)
        return torch.cat(log_probs), torch.cat(entropies)

    def _log_probs(
        self, states: Tensor, token_ids: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        if not self._is_head_linear:
            log_probs = token_log_probs(states, token_ids, temperature=temperature)
            entropies = token_entropies(states, token_ids, temperature=temperature)
            return torch.where(mask, log_probs, 0.0), torch.where(mask, entropies, 0.0)
        head = self.model.get_output_embeddings()
        return chunked_log_probs(
            states,
            self._accelerator.narrow(head.weight),
            token_ids,
            mask,
            temperature=temperature,
            head_bias=head.bias,
        )


@torch.no_grad()
def is_head_linear(model: Any) -> bool:
    """Whether logits are one linear map of the last hidden states: some models cap or scale them.

    Found out by trying it on two tokens.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    token_ids = torch.tensor([[0, 1]], device=head.weight.device)
    hidden = model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
    if hidden.shape[-1] != head.in_features:
        return False
    logits = model(input_ids=token_ids, use_cache=False).logits
    return torch.allclose(head(hidden), logits, rtol=1e-4, atol=1e-5)


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


def load_policy(folder: str | Path, accelerator: Accelerator) -> PolicyModel:
    """The policy or its frozen reference, float32, without dropout."""
    model = _load(AutoModelForCausalLM, folder, accelerator)
    return PolicyModel(model, accelerator).to(accelerator.torch_device).eval()


def load_scorer(folder: str | Path, kind: ScorerKind, accelerator: Accelerator) -> ScoreModel:
    """A reward or cost model in the units its sidecar states, float32, without dropout.

    Raises: DataError if the folder or its sidecar is missing or of another kind, or if it is not a
        causal model with one score per position.
    """
    model = _load(AutoModelForSequenceClassification, folder, accelerator, num_labels=1)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise DataError(
            f"{folder}: {type(model).__name__} has no linear head named score; give a causal "
            "sequence-classification model with num_labels=1"
        )
    scorer = ScoreModel(model, read_sidecar(Path(folder), kind=kind), accelerator)
    return scorer.to(accelerator.torch_device).eval()


def _load(kind: Any, folder: str | Path, accelerator: Accelerator, **options: Any) -> Any:
    attention = WIDE_ATTENTION if accelerator.has_slow_narrow_attention else "sdpa"
    try:
        return kind.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            attn_implementation=attention,
            **options,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a model folder ({error}); check the path") from error
