"""Cost and reward models as the judge: what a run was trained against, or better, others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equilibrate.config.base import TextConfig
from equilibrate.config.files import parse_settings
from equilibrate.errors import ConfigError
from equilibrate.evaluation.judges import RefusalMatcher, Verdict
from equilibrate.types import Conversation, Prompt, ScorerKind, is_unsafe

MAX_PADDED = 1.1
"""Tokens of a batch, padding included, for one that counts."""


class CostModelJudge:
    """Harmful where the cost model's score is above the threshold of its sidecar.

    Helpfulness is sigmoid(reward - threshold) with a reward model. Without one it is judged
    by rules, as refusals always are: see `RefusalMatcher`.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        reward: str | Path = "",
        batch_size: int = 16,
        device: str = "cpu",
        threads: int = 0,
        text: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
            folder: cost model with its sidecar and tokenizer, as `fit` writes it.
            reward: reward model likewise; empty for none.
            batch_size: answers of one forward pass at most.
            device: as torch spells it.
            threads: CPU threads; 0 for as many as torch takes by itself, which is one where Ray
                starts the driver (`ray job submit` sets OMP_NUM_THREADS).
            text: the settings `text` that the models were trained with, if not the defaults.
        Raises: ConfigError for an option out of its range, DataError for a folder that holds no
            such model.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size ({batch_size}) must be at least 1; try 16")
        if threads < 0:
            raise ConfigError(
                f"threads ({threads}) must be at least 1, or 0 for torch's own number"
            )
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "device": device,
            "threads": threads,
            "text": parse_settings(TextConfig, text or {}),
        }
        self._cost = AnswerScorer(folder, "cost", **options)
        self._reward = AnswerScorer(reward, "reward", **options) if reward else None
        self.name = f"cost model {Path(folder).name}"
        self.helpfulness_by = f"reward model {Path(reward).name}" if reward else ""
        if reward:
            self.name += f", {self.helpfulness_by}"

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Verdict]:
        verdicts = RefusalMatcher().judge(prompts, responses)
        asked = [prompt.conversation for prompt in prompts]
        helpfulness = [verdict.helpfulness for verdict in verdicts]
        if self._reward is not None:
            helpfulness = _sigmoid(self._reward.score(asked, responses)).tolist()
        costs = self._cost.score(asked, responses).tolist()
        return [
            replace(verdict, harmful=is_unsafe(cost), helpfulness=helpful)
            for verdict, cost, helpful in zip(verdicts, costs, helpfulness, strict=True)
        ]


class AnswerScorer:
    """A reward or cost model in the units of its sidecar, less its threshold.

    Tokenizes and scores as training does (`text.Renderer`, `models.scorer.ScoreModel`);
    also what feeds an `arena`.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: ScorerKind,
        *,
        batch_size: int = 16,
        device: str = "cpu",
        threads: int = 0,
        text: TextConfig | None = None,
    ) -> None:
        """The weights are read with the first answer.

        Raises: DataError if the folder is no such scorer, as `models.folders.check_folder`, or
            its tokenizer is missing.
        """
        from equilibrate.models.folders import check_folder, num_positions
        from equilibrate.text.renderer import Renderer

        check_folder(folder, kind)
        self._folder, self._kind = folder, kind
        self._num_positions = num_positions(folder)
        self._renderer = Renderer(folder, text)
        self._device = device
        self._batch_size = batch_size
        self._threads = threads

    @cached_property
    def _scorer(self) -> Any:
        from equilibrate.models.device import Accelerator
        from equilibrate.models.loading import load_scorer

        model = load_scorer(self._folder, self._kind, Accelerator("cpu", "float32"))
        return model.to(self._device)

    def score(
        self, prompts: Sequence[str | Conversation], responses: Sequence[str]
    ) -> NDArray[np.float64]:
        """Score of each answer at its end, [N]."""
        rows = self.encode(prompts, responses)
        scores = np.empty(len(rows))
        with _threads(self._threads):
            for batch in batches(list(map(len, rows)), self._batch_size):
                scores[batch] = self._score_batch([rows[row] for row in batch])
        return scores

    def encode(
        self, prompts: Sequence[str | Conversation], responses: Sequence[str]
    ) -> list[list[int]]:
        """Token ids of each prompt and answer, cut where the model's positions end."""
        answers = self._renderer.answers(prompts, responses)
        return [answer.token_ids[: self._num_positions] for answer in answers]

    def _score_batch(self, rows: Sequence[Sequence[int]]) -> list[float]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        # Padded on the right: a causal model's state at the last token never sees what follows.
        token_ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        ends = torch.tensor([len(row) - 1 for row in rows], device=self._device)
        with torch.inference_mode():
            scores = self._scorer(token_ids.to(self._device))
            index = torch.arange(len(rows), device=self._device)
            return list(scores[index, ends].tolist())


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Rows of similar length together, at most `batch_size` and with little padding, which would be
    computed for nothing."""
    batch: list[int] = []
    total = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        padded = (len(batch) + 1) * lengths[row]
        if batch and (len(batch) == batch_size or padded > MAX_PADDED * (total + lengths[row])):
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += lengths[row]
    if batch:
        yield batch


@contextmanager
def _threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # Of either sign without overflow.
    return 0.5 * (1 + np.tanh(values / 2))
