"""Pretraining text beside PPO: rows drawn by seed, so that a resumed run sees the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import AutoTokenizer

from equilibrate.data.sequences import encode
from equilibrate.data.tables import SFT_COLUMNS, load_columns


class PtxData:
    """A data set of prompts and responses, tokenized once."""

    def __init__(self, folder: str | Path, tokenizer_folder: str | Path, max_length: int) -> None:
        """Raises: DataError if the data set is missing or lacks a column."""
        table = load_columns(Path(folder), SFT_COLUMNS)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
        prompts, responses = (table[column][:] for column in SFT_COLUMNS)
        self._rows = encode(tokenizer, prompts, responses, max_length=max_length)

    def draw(self, num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Token ids [num_rows, T] and bool [num_rows, T], True on tokens to learn (not the first).

        Rows are drawn with replacement.
        """
        drawn = np.random.default_rng(seed).integers(len(self._rows.lengths), size=num_rows)
        token_ids, mask = self._rows.padded(drawn)
        mask[:, 0] = False
        return token_ids, mask
