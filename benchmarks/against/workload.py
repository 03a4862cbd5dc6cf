"""What every system is given: models, prompts, and the length of every response."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.limits import ModelShape, Roof, phase_seconds

if TYPE_CHECKING:
    from benchmarks.workloads import ModelFolders

SEED = 0
LOG_STD = 0.6
"""Of the logarithm of a ragged length: 7 % of the responses are longer than twice the mean."""
MEAN_SHARE = 0.2
"""Mean of ragged lengths over their upper end: 40 of 200."""
PROMPT_TOKENS = 16
PROMPTS_PER_CLASS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One block of rows of the table."""

    dtype: str
    lengths: str
    """`fixed` or `ragged`."""
    longest: int
    """Tokens of a response: of all, or at most."""
    rollouts: int

    @property
    def block(self) -> dict[str, Any]:
        """How every row of the block begins."""
        return {"precision": self.dtype, "lengths": self.lengths, "rollouts": self.rollouts}

    @property
    def name(self) -> str:
        return f"{self.dtype}-{self.rollouts}-{self.lengths}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama; heads have 32 channels, the fewest that vLLM's CPU attention takes."""

    hidden_size: int
    intermediate_size: int
    layers: int


def draw_lengths(setting: Setting, iterations: int) -> list[list[int]]:
    """[iterations, rollouts]: all alike, or log-normal around a fifth of the longest.

    The draws depend on setting and seed alone, so every system gets the same ones.
    """
    size = (iterations, setting.rollouts)
    if setting.lengths == "fixed":
        return np.full(size, setting.longest).tolist()
    rng = np.random.default_rng([SEED, setting.rollouts])
    mean = MEAN_SHARE * setting.longest
    # The mean of a log-normal is exp(mu + sigma^2 / 2).
    drawn = rng.lognormal(np.log(mean) - LOG_STD**2 / 2, LOG_STD, size)
    return np.clip(np.rint(drawn), 1, setting.longest).astype(int).tolist()


def cut_words(words: Iterable[str], count: int) -> Iterator[str]:
    """Texts of exactly `count` words, one after another; the rest at the end is dropped."""
    text: list[str] = []
    for word in words:
        text.append(word)
        if len(text) == count:
            yield " ".join(text)
            text = []


def write_equal_prompts(file: Path) -> None:
    """Prompts of the built-in world, joined and cut so that each has `PROMPT_TOKENS` tokens."""
    from equilibrate.sandbox.data import prompt_rows
    from equilibrate.sandbox.tokenizer import build_tokenizer, encode_prompt
    from equilibrate.sandbox.world import build_world
    from equilibrate.types import Category

    tokenizer = build_tokenizer()
    template = len(encode_prompt(tokenizer, ""))
    words: dict[str, list[str]] = {category.value: [] for category in Category}
    for row in prompt_rows(build_world(SEED), PROMPTS_PER_CLASS):
        words[str(row["category"])] += tokenizer.tokenize(str(row["prompt"]))
    rows = (
        {"prompt": text, "category": category}
        for category, stream in words.items()
        for text in dict.fromkeys(cut_words(stream, PROMPT_TOKENS - template))
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_llamas(folder: Path, shape: Shape, longest: int) -> ModelFolders:
    """Untrained policy with the tokenizer of the built-in world, and two scorers of its body."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.workloads import save_models
    from equilibrate.sandbox.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    heads = shape.hidden_size // 32
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        max_position_embeddings=PROMPT_TOKENS + longest,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(SEED)
    return save_models(folder, LlamaForCausalLM(config), tokenizer)


def mean_limits(
    shape: ModelShape, roof: Roof, lengths: list[list[int]], **work: Any
) -> dict[str, float]:
    """Least mean seconds of the phases of our iteration.

    Args: work: as in `phase_seconds`.
    """
    found = [phase_seconds(shape, roof, [PROMPT_TOKENS] * len(row), row, **work) for row in lengths]
    return {phase: fmean(row[phase] for row in found) for phase in found[0]}
