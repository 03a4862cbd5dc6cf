"""Which rows make which batch, and pairs of labelled answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from equilibrate.data.sequences import Sequences, encode
from equilibrate.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_BATCHES_PER_WINDOW = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Two responses to each prompt, ordered: `high` is what the model should score higher."""

    high: Sequences
    low: Sequences
    signs: NDArray[np.float32]
    """[R, 2] of (high, low), +1 unsafe, -1 safe; zeros for a reward model."""
    num_dropped: int
    """Rows left out because both responses are the same tokens."""


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
