"""Tiny, ordinary Hugging Face folders that every real engine can load, built once per session."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from actors.rollout import engine_environment
from equilibrate.types import ScoredRollout
from tests.integration.learners import free_port, score_rollouts, set_rank
from tests.tiny_models import write_models

# vLLM reads these at import, so they must be set before any test module is loaded.
os.environ.update(engine_environment(device="cpu", threads=1))
os.environ["HF_HUB_OFFLINE"] = "1"
# Torch is here already, and read its own number of threads when it came.
torch.set_num_threads(1)

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCABULARY = (*SPECIAL_TOKENS, *(f"word{index}" for index in range(40)))
EOS_ID = SPECIAL_TOKENS.index("<eos>")


def write_tiny_llama(
    folder: Path, *, tied: bool, hidden_size: int = 64, num_layers: int = 2
) -> Path:
    """An untrained float32 Llama and its word tokenizer.

    Heads are 32 wide: vLLM's attention on CPU supports no smaller.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS_ID,
        # Wide weights make distributions far from uniform: a wrong head then shows as a large gap.
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return write_words(folder)


def write_words(folder: Path) -> Path:
    """A word tokenizer of `VOCABULARY`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    word_level = WordLevel(
        {word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"
    )
    backend = Tokenizer(word_level)
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tied_llama"), tied=True)


@pytest.fixture(scope="session")
def untied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("untied_llama"), tied=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def scored(models: Path) -> list[ScoredRollout]:
    return score_rollouts(models)


@pytest.fixture(scope="module", autouse=True)
def no_group_is_left() -> Iterator[None]:
    """Files share processes in an order of the day: each finds none of another's groups."""
    yield
    if torch.distributed.is_initialized():
        if "vllm.distributed.parallel_state" in sys.modules:
            from vllm.distributed import cleanup_dist_env_and_memory

            # Before torch's: vLLM ends its parts of the group one by one, and needs the whole.
            cleanup_dist_env_and_memory()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.fixture
def group_of_one() -> None:
    """A group that lives on to the end of its file: DeepSpeed goes on with the one it met first."""
    if not torch.distributed.is_initialized():
        forget_group()
        set_rank(0, 1, free_port())


def forget_group() -> None:
    """DeepSpeed does not notice where a group was ended."""
    if "deepspeed" in sys.modules:
        import deepspeed.comm.comm
        import deepspeed.utils.groups

        deepspeed.comm.comm.cdb = None
        importlib.reload(deepspeed.utils.groups)
