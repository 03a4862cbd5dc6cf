"""Which of transformers' attentions a model is run with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from equilibrate.models.device import Accelerator

WIDE_ATTENTION = "sdpa_float32"


def attention_for(model: Any, accelerator: Accelerator) -> str:
    """Name of the fastest attention that computes what the model's config asks for.

    `sdpa` takes no cap on attention logits and drops it without a word (transformers 5.19): models
    with one, Gemma 2 for example, run in the slower `eager`; so do those that refuse `sdpa`.
    """
    config = model.config.get_text_config()
    is_capped = getattr(config, "attn_logit_softcapping", None) is not None
    if is_capped or not model._supports_sdpa:
        return "eager"
    return WIDE_ATTENTION if accelerator.has_slow_narrow_attention else "sdpa"


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
