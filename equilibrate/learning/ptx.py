"""Pretraining text beside PPO: rows drawn by seed, so that a resumed run sees the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equilibrate.data.sequences import sequences_of
from equilibrate.data.tables import SFT_COLUMNS, load_columns
from equilibrate.errors import DataError
from equilibrate.text.renderer import Renderer


class PtxData:
    """A data set of prompts and responses, tokenized once.

    Responses alone are learned: a policy is to answer, and what users ask is not its own to say.
    Plain text goes in as the response to an empty prompt.
    """

    def __init__(self, folder: str | Path, renderer: Renderer, max_length: int) -> None:
        """Raises: DataError if the data set is missing or lacks a column, or if its prompts leave
        no room for a response in any row."""
        table = load_columns(Path(folder), SFT_COLUMNS)
        prompts, responses = (table[column] for column in SFT_COLUMNS)
        self._rows = sequences_of(renderer.answers(prompts, responses), max_length=max_length)
        self._with_response = np.flatnonzero(self._rows.lengths > self._rows.prompt_lengths)
        if not len(self._with_response):
            raise DataError(
                f"{folder}: the shortest prompt ({self._rows.prompt_lengths.min()} tokens) must "
                f"leave room for a response within {max_length} tokens; raise "
                "rollout.max_model_len, or give shorter prompts"
            )

    def draw(self, num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Token ids [num_rows, T] and bool [num_rows, T], True on tokens to learn: those of
        responses, but for a first token, which nothing predicts.

        Rows are drawn with replacement from those that have a response.
        """
        rng = np.random.default_rng(seed)
        drawn = self._with_response[rng.integers(len(self._with_response), size=num_rows)]
        token_ids, mask = self._rows.padded(drawn)
        starts = np.maximum(self._rows.prompt_lengths[drawn], 1)
        return token_ids, mask & (torch.arange(mask.shape[1]) >= torch.from_numpy(starts)[:, None])
