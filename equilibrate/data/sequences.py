"""Token sequences of different lengths, and padded batches of them.

Rows are right-padded. A causal model's outputs on real tokens do not depend on what follows them,
so no attention mask is passed to the models here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilibrate.text.renderer import EncodedAnswer
from equilibrate.types import BoolArray, FloatArray, TokenIds


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

    def take(self, rows: NDArray[np.int64]) -> Sequences:
        """Some rows, in the given order."""
        parts = [self.flat[self.starts[row] : self.starts[row + 1]] for row in rows]
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
        flat = np.concatenate(parts) if parts else self.flat[:0]
        return Sequences(flat, starts, self.prompt_lengths[rows])

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


def sequences_of(answers: Sequence[EncodedAnswer], *, max_length: int) -> Sequences:
    """Rows cut to `max_length` tokens; prompt lengths as they were before."""
    rows = [answer.token_ids[:max_length] for answer in answers]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Sequences(
        np.fromiter((token for row in rows for token in row), np.int64, starts[-1]),
        starts,
        np.array([answer.prompt_length for answer in answers]),
    )
