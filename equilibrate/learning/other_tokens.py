"""A scorer with a tokenizer of its own: it reads what was said, and scores the policy's tokens.

Turns and decoded answer are written by the scorer's own template. It scores every prefix in its own
tokens; a token of the policy gets the score of the last of them that ends, in characters of the
answer, where it ends or before.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from equilibrate.config.base import TextConfig
from equilibrate.errors import DataError
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import num_positions
from equilibrate.models.frozen import frozen
from equilibrate.models.loading import load_scorer
from equilibrate.ppo.batches import token_budget_batches
from equilibrate.text.renderer import Renderer
from equilibrate.types import FloatArray, Prompt, Rollout, ScorerKind


class OtherTokens:
    """A reward or cost model in whose tokens the policy does not write."""

    def __init__(
        self,
        folder: str,
        kind: ScorerKind,
        accelerator: Accelerator,
        policy: str,
        text: TextConfig | None,
        max_tokens: int,
    ) -> None:
        """Args: policy: its folder. max_tokens: padded tokens of one forward pass.
        Raises: DataError."""
        self._folder = folder
        self._scorer = frozen(load_scorer(folder, kind, accelerator), accelerator)
        self._renderer = Renderer(folder, text)
        self._policy = Renderer(policy, text)
        self._num_positions = num_positions(folder)
        self._max_tokens = max_tokens
        self._device = accelerator.torch_device

    def score(self, rollouts: Sequence[Rollout]) -> list[FloatArray]:
        """Of each rollout [L]: at the prompt the score of the prompt, at the last token that of the
        whole answer, with its end unless it was cut off."""
        said = [rollout.token_ids[rollout.response_mask].tolist() for rollout in rollouts]
        texts = [self._policy.decode(token_ids) for token_ids in said]
        has_end = [not rollout.finish_reason.is_truncated for rollout in rollouts]
        asked = [rollout.messages for rollout in rollouts]
        answers = self._renderer.answers(asked, texts, has_end=has_end)
        of_prefixes = self._of_prefixes([answer.token_ids for answer in answers])
        found = []
        for row, (rollout, scores) in enumerate(zip(rollouts, of_prefixes, strict=True)):
            read = self._renderer.answer_ends(asked[row], texts[row], has_end=has_end[row])
            written = self._policy.decoded_ends(said[row])
            num_read = np.searchsorted(np.maximum.accumulate(read), written, side="right")
            last_of_prompt, last = answers[row].prompt_length - 1, len(scores) - 1
            places = np.full(len(rollout.token_ids), last_of_prompt)
            places[rollout.response_mask] += num_read
            places[-1] = last
            found.append(scores[np.minimum(places, last)])
        return found

    @torch.inference_mode()
    def _of_prefixes(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Score of each prefix of each row, as far as the model's positions go."""
        if cut := sum(len(row) > (self._num_positions or len(row)) for row in rows):
            logging.getLogger(__name__).warning(
                "%s: %d of %d answers are longer than its %d positions; the rest of them is unread",
                *(self._folder, cut, len(rows), self._num_positions),
            )
        kept = [torch.tensor(row[: self._num_positions]) for row in rows]
        found: dict[int, FloatArray] = {}
        for batch in token_budget_batches(list(map(len, kept)), self._max_tokens):
            token_ids = pad_sequence([kept[row] for row in batch], batch_first=True)
            scores = self._scorer(token_ids.to(self._device)).cpu().numpy()
            found |= {row: one[: len(kept[row])] for row, one in zip(batch, scores, strict=True)}
        return [found[row] for row in range(len(rows))]


def check_readable(
    folder: str | Path, text: TextConfig, prompts: Sequence[Prompt], max_new_tokens: int
) -> None:
    """Refuse a scorer that could not read the prompts, and answers of so many of its own tokens.

    Raises: DataError naming the folder, and the turns that its template refuses or the prompt that
        leaves too little room.
    """
    positions = num_positions(folder)
    rows = Renderer(folder, text).prompts([prompt.conversation for prompt in prompts])
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise DataError(f"{folder}: its tokenizer reads nothing in prompt {prompt.prompt_id!r}")
        if positions is not None and len(row) + max_new_tokens > positions:
            raise DataError(
                f"{folder}: its model has {positions} positions, of which prompt "
                f"{prompt.prompt_id!r} takes {len(row)} and an answer up to "
                f"rollout.max_new_tokens ({max_new_tokens}); lower that, or leave long prompts out "
                "by a lower rollout.max_model_len"
            )
