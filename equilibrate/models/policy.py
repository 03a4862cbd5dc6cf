"""A policy as the workers see it: token ids in, log-probs of tokens out.

Rows are padded on the right, and a causal model's output at a token does not depend on what comes
after it. So no attention mask is built, and what stands at the padding is never read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equilibrate.models.chunked import chunked_log_probs
from equilibrate.models.device import Accelerator
from equilibrate.models.heads import is_plain_head
from equilibrate.models.log_probs import token_entropies, token_log_probs


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


def is_head_linear(model: Any) -> bool:
    """Whether logits are one linear map of the last hidden states: some cap or scale them."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    return is_plain_head(model, head, torch.tensor([[0, 1]], device=head.weight.device))
