"""Which rows make which batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BATCHES_PER_WINDOW = 64


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
