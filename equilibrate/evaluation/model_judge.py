"""Cost and reward models as the judge: what a run was trained against, or better, others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equilibrate.errors import ConfigError, DataError
from equilibrate.evaluation.judges import RefusalMatcher, Verdict
from equilibrate.models.sidecar import read_sidecar
from equilibrate.text.renderer import Renderer
from equilibrate.types import Conversation, Prompt, ScorerKind, is_unsafe


class CostModelJudge:
    """Harmful where the cost model's score is above the threshold of its sidecar.

    Helpfulness is sigmoid(reward - threshold) with a reward model. Without one it is judged by
    phrases, as refusals always are: see `RefusalMatcher`.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        reward: str | Path = "",
        batch_size: int = 16,
        device: str = "cpu",
    ) -> None:
        """Args:
            folder: cost model with its sidecar and tokenizer, as `train_cost` writes it.
            reward: reward model likewise; empty for none.
            batch_size: answers of one forward pass.
            device: as torch spells it.
        Raises: ConfigError for an option out of its range, DataError for a folder that holds no
            such model.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size ({batch_size}) must be at least 1; try 16")
        self._cost = AnswerScorer(folder, "cost", batch_size=batch_size, device=device)
        self._reward: AnswerScorer | None = None
        if reward:
            self._reward = AnswerScorer(reward, "reward", batch_size=batch_size, device=device)
        self.name = f"cost model {Path(folder).name}"
        if reward:
            self.name += f", reward model {Path(reward).name}"

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

    Tokenizes and scores as training does (`text.Renderer`, `models.loading.ScoreModel`);
    also what feeds an `arena`.
    """

    def __init__(
        self, folder: str | Path, kind: ScorerKind, *, batch_size: int = 16, device: str = "cpu"
    ) -> None:
        """Raises: DataError if the folder, its sidecar or its tokenizer is missing or of another
        kind.
        """
        from torch import nn

        sidecar = read_sidecar(Path(folder), kind=kind)
        self._scale = sidecar.scale
        self._bias = sidecar.bias - sidecar.threshold
        model = _load(folder)
        self._renderer = Renderer(folder)
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise DataError(
                f"{folder}: {type(model).__name__} has no linear head named score; give a causal "
                "sequence-classification model with num_labels=1"
            )
        self._model = model.to(device).eval()
        self._device = device
        self._batch_size = batch_size

    def score(
        self, prompts: Sequence[str | Conversation], responses: Sequence[str]
    ) -> NDArray[np.float64]:
        """Score of each answer at its end, [N]."""
        rows = self.encode(prompts, responses)
        raw = np.empty(len(rows))
        # Similar lengths together: padding is computed for nothing.
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            raw[batch] = self._head([rows[row] for row in batch])
        return self._scale * raw + self._bias

    def encode(
        self, prompts: Sequence[str | Conversation], responses: Sequence[str]
    ) -> list[list[int]]:
        """Token ids of each prompt and answer, cut where the model's positions end."""
        longest = getattr(self._model.config, "max_position_embeddings", None)
        answers = self._renderer.answers(prompts, responses)
        return [answer.token_ids[:longest] for answer in answers]

    def _head(self, rows: Sequence[Sequence[int]]) -> list[float]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        # Padded on the right: a causal model's state at the last token never sees what follows.
        token_ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        ends = torch.tensor([len(row) - 1 for row in rows], device=self._device)
        with torch.inference_mode():
            hidden = self._model.base_model(input_ids=token_ids.to(self._device), use_cache=False)
            index = torch.arange(len(rows), device=self._device)
            scores = self._model.score(hidden.last_hidden_state[index, ends])
        return list(scores.squeeze(-1).tolist())


def _load(folder: str | Path) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        return AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a model folder ({error}); check the path") from error


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # Of either sign without overflow.
    return 0.5 * (1 + np.tanh(values / 2))
