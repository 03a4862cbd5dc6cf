"""Kinds of models, each at toy size through the real generator: parity, update, parity again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from actors.rollout import RolloutWorker, _sampling_params
from actors.weights import SyncOutcome, pack_adapter, pack_model, pack_weights
from equilibrate.config.training import AdapterConfig
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import check_folder
from equilibrate.models.loading import load_policy
from equilibrate.models.lora import adapt, is_adapter, merged_weights
from equilibrate.models.names import folder_aliases, folder_tensors
from equilibrate.models.policy import PolicyModel
from tests.integration.conftest import EOS_ID, VOCABULARY, write_words
from tests.integration.test_rollout import (
    ENGINE,
    PARITY_NATS,
    parity_gap,
    reference_log_probs,
    requests,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# Heads are 32 wide: vLLM's attention on CPU supports no smaller.
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS_ID,
    # Wide weights make distributions far from uniform: a wrong head then shows as a large gap.
    "initializer_range": 0.1,
}
WITHOUT_GROUPS = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama-groups": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2-tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, head_dim=32, query_pre_attn_scalar=32),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=32, query_pre_attn_scalar=32),
    "phi3": Phi3Config(**SIZES),
    "olmo2": Olmo2Config(**SIZES),
    "gpt-neox": GPTNeoXConfig(**WITHOUT_GROUPS),
}

ADAPTER = AdapterConfig(rank=4, alpha=8)


@pytest.fixture(params=FAMILIES, scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(FAMILIES[request.param]))
    folder = tmp_path_factory.mktemp("family")
    model.to(torch.float32).save_pretrained(folder)
    return write_words(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """The learner's, before the engine: where vLLM has no class of its own for a family (OLMo 2,
    GPT-NeoX) it changes that of transformers, in its process. In a run the learner has another."""
    model = load_policy(folder, Accelerator("cpu", "float32")).model
    model.base_model.do_not_compile = True
    return model


@pytest.fixture(scope="module")
def worker(folder: Path, model: Any) -> Iterator[RolloutWorker]:
    check_folder(folder, "policy")
    worker = RolloutWorker(model_folder=str(folder), **ENGINE)
    yield worker
    worker._llm.llm_engine.engine_core.shutdown()
    del worker
    gc.collect()


def scores_of(worker: RolloutWorker, prompts: list[Any]) -> list[Any]:
    """Log-probs of the tokens behind the first of each prompt, by the weights that it holds."""
    parameters = [_sampling_params(max_tokens=1, prompt_logprobs=0) for _ in prompts]
    outputs: list[Any] = worker._run(prompts, parameters)
    return [np.array(output.prompt_logprobs.logprobs) for output in outputs]


def test_a_family_is_sampled_as_it_is_trained(model: Any, worker: RolloutWorker) -> None:
    prompts = [request.token_ids for request in requests(copies=1)]
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for version in range(3):
        with torch.no_grad():
            for parameter in model.parameters() if version else ():
                parameter.add_(0.02 * torch.randn_like(parameter))
        scores = scores_of(worker, prompts)
        wanted = [reference_log_probs(model, prompt, 1.0).numpy()[1:] for prompt in prompts]
        gap = max(np.abs(s - w).max() for s, w in zip(scores, wanted, strict=True))
        # Before the update the engine has the last version, and at first the folder's.
        assert gap > 1e-3 if version else gap <= PARITY_NATS
        assert worker.update_weights(pack_model(model), version) is SyncOutcome.FIRST_TRY
        assert parity_gap(worker.generate(requests(), version), model) <= PARITY_NATS
    model.load_state_dict(start)


def test_an_adapter_alone_arrives_as_the_weights_it_is_merged_into(
    model: Any, worker: RolloutWorker
) -> None:
    """Log-probs and samples are the same bits: the adapter's, and after weights that came whole."""
    held = PolicyModel(model, Accelerator("cpu", "float32"))
    adapt(held, ADAPTER, Accelerator("cpu", "float32"), seed=0)
    prompts = [request.token_ids for request in requests(copies=1)]
    found = []
    for version in range(4):
        with torch.no_grad():
            parts = {n: p for n, p in model.named_parameters() if is_adapter(n)}
            for number, part in enumerate(parts.values()):
                torch.manual_seed(100 * (version // 2) + number)
                part.copy_(0.1 * torch.randn_like(part))
        whole = pack_weights(
            folder_tensors(model, merged_weights(model)), aliases=folder_aliases(model)
        )
        sent = whole if version % 2 else pack_adapter(parts.items(), ADAPTER)
        assert worker.update_weights(sent, version) is SyncOutcome.FIRST_TRY
        sampled = [one.rollout_log_probs for one in worker.generate(requests(), version)]
        found.append(np.concatenate([*scores_of(worker, prompts), *sampled]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], found[3])
    num_scores = sum(len(prompt) - 1 for prompt in prompts)
    assert np.abs(found[1][:num_scores] - found[2][:num_scores]).max() > 1e-3
