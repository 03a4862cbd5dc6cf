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
from equilibrate.types import Prompt, ScorerKind, is_unsafe


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
        texts = [prompt.text for prompt in prompts]
        helpfulness = [verdict.helpfulness for verdict in verdicts]
        if self._reward is not None:
            helpfulness = _sigmoid(self._reward.score(texts, responses)).tolist()
        costs = self._cost.score(texts, responses).tolist()
        return [
            replace(verdict, harmful=is_unsafe(cost), helpfulness=helpful)
            for verdict, cost, helpful in zip(verdicts, costs, helpfulness, strict=True)
        ]


class AnswerScorer:
    """A reward or cost model in the units of its sidecar, less its threshold.

    Tokenizes and scores as training does (`data.sequences.encode`, `models.loading.ScoreModel`);
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
        self._tokenizer, model = _load(folder)
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise DataError(
                f"{folder}: {type(model).__name__} has no linear head named score; give a causal "
                "sequence-classification model with num_labels=1"
            )
        self._model = model.to(device).eval()
        self._device = device
        self._batch_size = batch_size

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        """Score of each answer at its end, [N]."""
        rows = encode_answers(
            self._tokenizer,
            prompts,
            responses,
            max_length=getattr(self._model.config, "max_position_embeddings", None),
        )
        raw = np.empty(len(rows))
        # Similar lengths together: padding is computed for nothing.
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            raw[batch] = self._head([rows[row] for row in batch])
        return self._scale * raw + self._bias

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


def encode_answers(
    tokenizer: Any, prompts: Sequence[str], responses: Sequence[str], *, max_length: int | None
) -> list[list[int]]:
    """Prompt in the tokenizer's chat template (plain without one), response, end of sequence.

    Args: max_length: rows are cut to so many tokens, as in training; None: never.
    """
    if tokenizer.chat_template:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        rendered = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    else:
        prompt_ids = tokenizer(list(prompts))["input_ids"]
    response_ids = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
    return [
        [*prompt, *response, tokenizer.eos_token_id][:max_length]
        for prompt, response in zip(prompt_ids, response_ids, strict=True)
    ]


def _load(folder: str | Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a model folder ({error}); check the path") from error
    if tokenizer.eos_token_id is None:
        raise DataError(f"{folder}: the tokenizer must have an eos_token; it ends every response")
    return tokenizer, model


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # Of either sign without overflow.
    return 0.5 * (1 + np.tanh(values / 2))
