"""Adapters of ours in the real vLLM on CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaForCausalLM

from equilibrate.config.training import AdapterConfig
from equilibrate.models.device import Accelerator
from equilibrate.models.lora import adapt, merged_weights, write_adapter
from tests.integration.test_rollout import reference_log_probs

# vLLM and torch's own deprecations, raised where they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_vllm_serves_an_adapter_of_ours(untied_llama: Path, tmp_path: Path) -> None:
    """Beside its base, and with the log-probs of the weights that it was merged into."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    held = SimpleNamespace(model=LlamaForCausalLM.from_pretrained(untied_llama).eval())
    held.requires_grad_ = held.model.requires_grad_
    adapter = AdapterConfig(rank=8, alpha=16)
    adapt(held, adapter, Accelerator("cpu", "float32"), seed=0)
    generator = torch.Generator().manual_seed(1)
    trained = {}
    for name, parameter in held.model.named_parameters():
        if parameter.requires_grad:
            trained[name] = parameter.data.normal_(std=0.1, generator=generator)
    write_adapter(tmp_path, trained, adapter, base=str(untied_llama))
    merged = LlamaForCausalLM.from_pretrained(untied_llama)
    merged.load_state_dict(dict(merged_weights(held.model)), strict=False)
    llm = LLM(
        model=str(untied_llama), dtype="float32", max_model_len=64, enforce_eager=True,
        kv_cache_memory_bytes=2**27, enable_lora=True, max_lora_rank=8,
    )  # fmt: skip
    token_ids = [1, *range(5, 25)]
    found = {}
    for name, request in (("base", None), ("adapter", LoRARequest("ours", 1, str(tmp_path)))):
        (output,) = llm.generate(
            {"prompt_token_ids": token_ids},
            SamplingParams(max_tokens=1, prompt_logprobs=0),
            lora_request=request,
            use_tqdm=False,
        )
        steps = zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)
        found[name] = torch.tensor([step[token].logprob for token, step in steps])
    llm.llm_engine.engine_core.shutdown()
    expected = reference_log_probs(merged, token_ids, 1.0)[1:]
    assert (found["base"] - expected).abs().max() > 0.5
    torch.testing.assert_close(found["adapter"], expected, atol=1e-4, rtol=1e-4)
