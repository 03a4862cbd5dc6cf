from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from equilibrate.models.attention import WIDE_ATTENTION, attention_for
from equilibrate.models.device import Accelerator
from equilibrate.models.loading import load_policy
from tests.unit.models.toys import CONFIGS, causal_model


def with_large_logits(model: Any) -> Any:
    """So that a cap of 50 on attention logits and of 30 on token logits bends something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter *= 50
            if "embed" in name or "lm_head" in name:
                parameter *= 100
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_transformers_in_its_plainest_form(tmp_path: Path, kind: str) -> None:
    with_large_logits(causal_model(kind)).save_pretrained(tmp_path)
    token_ids = torch.randint(3, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    policy = load_policy(tmp_path, Accelerator("cpu", "float32"))
    with torch.no_grad():
        wanted = plain(token_ids).logits.log_softmax(-1)[:, :-1]
        found, _ = policy(token_ids, torch.ones_like(token_ids, dtype=torch.bool), 1.0)
    wanted = wanted.gather(2, token_ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(found[:, 1:], wanted, rtol=1e-5, atol=1e-5)


def test_a_cap_on_attention_logits_is_not_dropped() -> None:
    cpu, narrow = Accelerator("cpu", "float32"), Accelerator("cpu", "bfloat16")
    assert attention_for(causal_model("llama"), cpu) == "sdpa"
    assert attention_for(causal_model("llama"), narrow) == WIDE_ATTENTION
    for accelerator in (cpu, narrow):
        assert attention_for(causal_model("gemma2"), accelerator) == "eager"
        # No cap in its config, and no cap in its layers.
        assert attention_for(causal_model("gemma3"), accelerator) != "eager"
        # Refuses sdpa: its sinks are no part of it.
        assert attention_for(causal_model("gpt-oss"), accelerator) == "eager"
