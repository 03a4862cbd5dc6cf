"""The frozen models of a run: reward, cost (or what reads text in their place) and reference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from equilibrate.config.base import TextConfig
from equilibrate.config.sources import reads_text
from equilibrate.errors import DataError
from equilibrate.learning.other_tokens import OtherTokens
from equilibrate.learning.sources import TextScorer
from equilibrate.models.device import Accelerator, Device, Dtype
from equilibrate.models.frozen import frozen, share_frozen
from equilibrate.models.loading import load_policy, load_scorer, load_twin_scorer
from equilibrate.models.scorer import TwinScoreModel
from equilibrate.ppo.batches import token_budget_batches
from equilibrate.preference.spans import end_scores
from equilibrate.text.renderer import Renderer
from equilibrate.text.vocabulary import reads_what_is_said
from equilibrate.types import FloatArray, Rollout, ScoredRollout, ScorerKind

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""Of a process that holds a `ScoringWorker`: the C allocator keeps what is freed. By default it
hands activations back after every operation, and the next one waits for fresh pages."""


class ScoringWorker:
    """Scores every prefix of a rollout with the reward and cost models, and adds the reference."""

    def __init__(
        self,
        *,
        reward: str,
        cost: str,
        reference: str,
        device: Device,
        dtype: Dtype,
        cpu_threads: int,
        max_tokens_per_batch: int,
        temperature: float,
        more_rewards: Sequence[tuple[str, float]] = (),
        deadline_seconds: float = 600.0,
        text: TextConfig | None = None,
    ) -> None:
        """Args:
        reward, cost, reference: model folders; without reward or cost every token scores 0. Reward
            and cost may have other tokens (`OtherTokens`), or be sources that read text: then only
            the last token of a response scores.
        max_tokens_per_batch: padded tokens of one forward pass.
        more_rewards: sources of rewards beside the first, each with the weight of its scores.
        temperature: the one that samples the rollouts; log-probs are those of that distribution.
        deadline_seconds: of one call of `score`.
        text: how conversations are written for other tokens.
        """
        self._accelerator = Accelerator(device, dtype)
        self._accelerator.prepare(threads=cpu_threads)
        self._others: list[tuple[_Term, OtherTokens]] = []
        self._texts: list[tuple[_Term, TextScorer]] = []
        folders: dict[str, list[_Term]] = {}
        for term in _terms(reward, cost, more_rewards):
            if reads_text(term.source):
                self._texts.append((term, TextScorer(term.source, seconds=deadline_seconds)))
            elif reads_what_is_said(reference, term.source):
                read = (self._accelerator, reference, text, max_tokens_per_batch)
                self._others.append((term, OtherTokens(term.source, term.kind, *read)))
            else:
                folders.setdefault(term.source, []).append(term)
        self._models = [self._loaded(*folder) for folder in folders.items()]
        self._renderer = Renderer(reference, text) if self._texts else None
        self._reference = frozen(load_policy(reference, self._accelerator), self._accelerator)
        for loaded in self._models:
            share_frozen(loaded.model, self._reference)
        models: dict[str, Any] = {loaded.folder: loaded.model for loaded in self._models}
        self._num_tokens: dict[str, int] = {
            folder: model.model.get_input_embeddings().num_embeddings
            for folder, model in (models | {reference: self._reference}).items()
        }
        self._max_tokens = max_tokens_per_batch
        self._temperature = temperature

    def _loaded(self, folder: str, terms: Sequence[_Term]) -> _Loaded:
        """Two heads of one trunk read a prefix once."""
        if len(terms) == 1:
            model: TwinScoreModel = load_scorer(folder, terms[0].kind, self._accelerator)
        else:
            model = load_twin_scorer(folder, [term.kind for term in terms], self._accelerator)
        return _Loaded(folder, frozen(model, self._accelerator), terms)

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """One scored rollout per rollout, in the given order.

        Raises: DataError if a model does not know one of the tokens.
        """
        began = time.monotonic()
        self._require_known_tokens(rollouts)
        lengths = [len(rollout.token_ids) for rollout in rollouts]
        scored: dict[int, ScoredRollout] = {}
        for rows in token_budget_batches(lengths, self._max_tokens):
            batch = [rollouts[row] for row in rows]
            scored.update(zip(rows.tolist(), self._score_batch(batch), strict=True))
        found = [scored[row] for row in range(len(rollouts))]
        for term, other in self._others:
            token_scores = zip(found, other.score(rollouts), strict=True)
            found = [_added(one, term, float(of[-1]), of) for one, of in token_scores]
        return self._with_texts(found, began)

    def _with_texts(self, scored: list[ScoredRollout], began: float) -> list[ScoredRollout]:
        for term, scorer in self._texts:
            assert self._renderer is not None
            verdicts = scorer.score(
                [one.rollout for one in scored],
                self._renderer.decode,
                spent=time.monotonic() - began,
            )
            pairs = zip(scored, verdicts, strict=True)
            scored = [_added(one, term, verdict, _at_end(one, verdict)) for one, verdict in pairs]
        return scored

    def _require_known_tokens(self, rollouts: Sequence[Rollout]) -> None:
        folder = min(self._num_tokens, key=lambda folder: self._num_tokens[folder])
        num_tokens = self._num_tokens[folder]
        for rollout in rollouts:
            if (largest := int(rollout.token_ids.max())) >= num_tokens:
                raise DataError(
                    f"prompt {rollout.prompt_id!r}: token {largest} is none of the {num_tokens} "
                    f"that {folder} knows; give models that read the policy's tokens"
                )

    @torch.inference_mode()
    def _score_batch(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        token_ids = pad_sequence(
            [torch.from_numpy(np.array(rollout.token_ids)) for rollout in rollouts],
            batch_first=True,
        ).to(self._accelerator.torch_device)
        nothing = np.zeros(token_ids.shape, np.float32)
        scores: dict[ScorerKind, FloatArray] = {"reward": nothing, "cost": nothing}
        for loaded in self._models:
            of_heads = _to_numpy(loaded.model(token_ids)).reshape(*token_ids.shape, -1)
            for head, term in enumerate(loaded.terms):
                scores[term.kind] = scores[term.kind] + term.weight * of_heads[..., head]
        mask = pad_sequence(
            [torch.from_numpy(rollout.response_mask.copy()) for rollout in rollouts],
            batch_first=True,
        ).to(self._accelerator.torch_device)
        log_probs, _ = self._reference(token_ids, mask, self._temperature)
        return _scored(rollouts, scores["reward"], scores["cost"], _to_numpy(log_probs))


@dataclass(frozen=True, slots=True)
class _Term:
    """One of the scores that are added up."""

    kind: ScorerKind
    weight: float
    source: str


@dataclass(frozen=True, slots=True)
class _Loaded:
    folder: str
    model: TwinScoreModel
    terms: Sequence[_Term]
    """Of each head, in their order."""


def _terms(reward: str, cost: str, more_rewards: Sequence[tuple[str, float]]) -> list[_Term]:
    """Those whose source is given."""
    kinds: dict[ScorerKind, str] = {"reward": reward, "cost": cost}
    terms = [_Term(kind, 1.0, source) for kind, source in kinds.items() if source]
    return terms + [_Term("reward", weight, source) for source, weight in more_rewards]


def _at_end(scored: ScoredRollout, verdict: float) -> FloatArray:
    of_tokens = np.zeros(len(scored.rollout.token_ids), np.float32)
    of_tokens[-1] = verdict
    return of_tokens


def _added(
    scored: ScoredRollout, term: _Term, score: float, of_tokens: FloatArray
) -> ScoredRollout:
    if term.kind == "reward":
        return replace(
            scored,
            reward=scored.reward + term.weight * score,
            token_rewards=scored.token_rewards + term.weight * of_tokens,
        )
    return replace(
        scored,
        cost=scored.cost + term.weight * score,
        token_costs=scored.token_costs + term.weight * of_tokens,
    )


def _to_numpy(tensor: Tensor) -> FloatArray:
    return tensor.float().cpu().numpy()


def _scored(
    rollouts: Sequence[Rollout], rewards: FloatArray, costs: FloatArray, log_probs: FloatArray
) -> list[ScoredRollout]:
    """Args: rewards, costs, log_probs: [B, T], of rollouts padded on the right."""
    lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts])
    is_token = torch.arange(rewards.shape[1])[None] < lengths[:, None]
    ends = (end_scores(torch.from_numpy(scores), is_token).tolist() for scores in (rewards, costs))
    return [
        ScoredRollout(
            rollout=rollout,
            reward=reward,
            cost=cost,
            # Copies, so that a rollout does not keep the padded batch alive.
            token_rewards=rewards[row, :length].copy(),
            token_costs=costs[row, :length].copy(),
            ref_log_probs=log_probs[row, :length].copy(),
        )
        for row, (rollout, length, reward, cost) in enumerate(
            zip(rollouts, lengths.tolist(), *ends, strict=True)
        )
    ]
