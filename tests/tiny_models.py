"""Tiny, untrained model folders for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 40


TINY_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def world_llama(tokenizer: Any, **more: Any) -> Any:
    """Sizes of a Llama that knows the words of the built-in world."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def write_models(folder: Path) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sizes = {
        **TINY_LLAMA,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / "policy")
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")), eos_token="w2", pad_token="w0"
    )
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder / "policy")
    write_scorers(folder, sizes, scale=5.0)
    return folder


def write_scorers(folder: Path, sizes: Mapping[str, Any], **sidecar: float) -> None:
    """`reward` and `cost`: random models, and what the sidecar says besides their kind."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    for kind in ("reward", "cost"):
        scorer = LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=1))
        scorer.save_pretrained(folder / kind)
        (folder / kind / "equilibrate_score.json").write_text(json.dumps({"kind": kind, **sidecar}))
