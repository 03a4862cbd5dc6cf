"""From text columns to padded batches: tokenized once, grouped by length, fixed by the seed.

Rows are right-padded. A causal model's outputs on real tokens do not depend on what follows them,
so no attention mask is passed to the models here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from numpy.typing import NDArray
from torch import Tensor

from equilibrate.errors import DataError
from equilibrate.preference.answers import require_columns, require_labels
from equilibrate.preference.sidecar import ScorerKind
from equilibrate.types import BoolArray, FloatArray, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SFT_COLUMNS = ("prompt", "response")
REWARD_COLUMNS = ("prompt", "response_0", "response_1", "better_response_id")
COST_COLUMNS = (
    "prompt",
    "response_0",
    "response_1",
    "safer_response_id",
    "is_response_0_safe",
    "is_response_1_safe",
)
_BATCHES_PER_WINDOW = 64


@dataclass(frozen=True, slots=True)
class Sequences:
    """Token sequences of different lengths in one flat array: prompt, then response."""

    flat: TokenIds
    starts: NDArray[np.int64]
    """[R + 1], where each row begins in `flat`."""
    prompt_lengths: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def padded(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Token ids [B, T], 0 on padding, and the mask of real tokens."""
        ids, mask = self._gather(self.flat, rows)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def padded_values(self, values: FloatArray, rows: NDArray[np.int64]) -> Tensor:
        """[B, T] of one number per token, laid out as `flat`; 0 on padding."""
        return torch.from_numpy(self._gather(values, rows)[0])

    def _gather(
        self, flat: NDArray[Any], rows: NDArray[np.int64]
    ) -> tuple[NDArray[Any], BoolArray]:
        starts, lengths = self.starts[rows, None], self.lengths[rows, None]
        positions = np.arange(lengths.max())
        mask = positions < lengths
        return np.where(mask, flat[np.where(mask, starts + positions, 0)], 0), mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Two responses to each prompt, ordered: `high` is what the model should score higher."""

    high: Sequences
    low: Sequences
    signs: NDArray[np.float32]
    """[R, 2] of (high, low), +1 unsafe, -1 safe; zeros for a reward model."""
    num_dropped: int
    """Rows left out because both responses are the same tokens."""


def load_columns(folder: Path, columns: Sequence[str]) -> Dataset:
    """The data set saved in `folder`.

    Raises: DataError, naming folder and column, if it is missing, empty or lacks a column.
    """
    if not (folder / "dataset_info.json").is_file():
        raise DataError(f"{folder}: no data set here; save one with Dataset.save_to_disk")
    try:
        table = load_from_disk(str(folder))
    except IndexError:
        # How `datasets` 5 meets a set that was saved without a row.
        raise DataError(f"{folder}: the data set is empty; give at least one row") from None
    try:
        require_columns(dict.fromkeys(table.column_names, ()), columns)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    return table


def read_labels(table: Dataset, folder: Path, column: str) -> NDArray[np.int64]:
    """A 0/1 column. Raises: DataError naming folder, row and value of the first other entry."""
    values = table[column][:]
    try:
        require_labels({column: values}, column)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    return np.asarray(values, dtype=np.int64)


def load_pair_labels(
    kind: ScorerKind, folder: Path
) -> tuple[Dataset, NDArray[np.int64], NDArray[np.float32]]:
    """The table, which response [R] is to score higher, and signs [R, 2] by response.

    Raises: DataError naming the folder and the column, row and value at fault.
    """
    table = load_columns(folder, REWARD_COLUMNS if kind == "reward" else COST_COLUMNS)
    if kind == "reward":
        better = read_labels(table, folder, "better_response_id")
        return table, better, np.zeros((len(table), 2), dtype=np.float32)
    safer = read_labels(table, folder, "safer_response_id")
    is_safe = [read_labels(table, folder, f"is_response_{i}_safe") for i in (0, 1)]
    return table, 1 - safer, (1 - 2 * np.stack(is_safe, axis=1)).astype(np.float32)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    max_length: int,
) -> Sequences:
    """Prompt in the tokenizer's chat template (plain without one), response, end of sequence.

    Rows are cut to `max_length` tokens.
    """
    unique = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    prompt_ids = _encode_prompts(tokenizer, list(unique))
    response_ids = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
    rows = [
        (prompt_ids[unique[prompt]] + response + [tokenizer.eos_token_id])[:max_length]
        for prompt, response in zip(prompts, response_ids, strict=True)
    ]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(
        np.fromiter((token for row in rows for token in row), dtype=np.int64, count=starts[-1]),
        starts,
        np.array([len(prompt_ids[unique[prompt]]) for prompt in prompts]),
    )


def _encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[list[int]]:
    if not tokenizer.chat_template:
        return tokenizer(prompts)["input_ids"]
    rendered = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        add_generation_prompt=True,
        tokenize=False,
    )
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    table: Dataset,
    high_ids: NDArray[np.int64],
    signs: NDArray[np.float32],
    *,
    max_length: int,
) -> Pairs:
    """Args: high_ids [R], which of the two responses is to score higher; signs [R, 2] by response.

    Raises: DataError if no row has two different responses.
    """
    prompts = table["prompt"][:]
    sides = (table["response_0"][:], table["response_1"][:])
    kept = [row for row in range(len(prompts)) if sides[0][row] != sides[1][row]]
    # A second pass for pairs that differ only beyond the cut would cost more than it saves: their
    # comparison span is empty and their loss is 0.
    if not kept:
        raise DataError("every pair holds the same response twice; give pairs that differ")
    order = {0: high_ids, 1: 1 - high_ids}
    encoded = [
        encode(
            tokenizer,
            [prompts[row] for row in kept],
            [sides[ids[row]][row] for row in kept],
            max_length=max_length,
        )
        for ids in order.values()
    ]
    rows = np.array(kept)
    ordered = np.stack([signs[rows, ids[rows]] for ids in order.values()], axis=1)
    return Pairs(
        high=encoded[0], low=encoded[1], signs=ordered, num_dropped=len(prompts) - len(kept)
    )


def plan_batches(
    lengths: NDArray[np.int64], *, batch_size: int, num_batches: int, seed: int
) -> list[NDArray[np.int64]]:
    """Row numbers of every batch: shuffled epochs end to end, similar lengths together.

    Rows are sorted by length only within windows of 64 batches, whose batches are then shuffled, so
    that training does not see a curriculum of lengths.
    """
    rng = np.random.default_rng(seed)
    wanted = batch_size * num_batches
    epochs = -(-wanted // len(lengths))
    stream = np.concatenate([rng.permutation(len(lengths)) for _ in range(epochs)])[:wanted]
    batches: list[NDArray[np.int64]] = []
    for start in range(0, wanted, batch_size * _BATCHES_PER_WINDOW):
        window = stream[start : start + batch_size * _BATCHES_PER_WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        chunks = window.reshape(-1, batch_size)
        batches.extend(chunks[rng.permutation(len(chunks))])
    return batches


def split_held_out(
    num_rows: int, *, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows to measure on. Raises: DataError where there is no row for both."""
    if num_rows < 2:
        raise DataError(f"{num_rows} pair is too few: one is held out for calibration; give 2")
    num_held_out = max(1, round(num_rows * fraction))
    order = np.random.default_rng(seed).permutation(num_rows)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])
