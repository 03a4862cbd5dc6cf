"""The loss of a reward or cost model over some examples, in parts that add up.

An example is a pair of answers or one answer that is labelled by itself; a cost model may learn
from both, and a batch then holds both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equilibrate.config.fit import FitConfig, ScorerObjectiveConfig
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.offline.table import AnswerTable, Rows
from equilibrate.preference.batches import ScoredAnswers, ScoredPairs
from equilibrate.preference.spans import comparison_span, end_scores, hold_end_scores
from equilibrate.types import ScorerKind

Scores = Callable[[Tensor], Tensor]
"""Token ids [B, T] to the score [B, T] of the prefix that ends at each token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlan:
    """A global batch of examples: every rank finds the same."""

    examples: Rows


class ScorerLoss:
    """Of each pair the first answer is to score higher, at every compared token or at the end."""

    def __init__(self, table: AnswerTable, config: FitConfig, device: torch.device) -> None:
        assert isinstance(config.objective, ScorerObjectiveConfig)
        self.kind: ScorerKind = config.objective.type
        self._table = table
        self._settings = config.objective
        self._objective = OBJECTIVES[config.objective.type]
        self.device = device

    def plan(self, examples: Rows) -> PairPlan:
        return PairPlan(examples=examples)

    def loss(self, model: Scores, plan: PairPlan, places: Rows) -> Tensor:
        """The part of the examples at `places` of the batch, in one pass of the model: of their
        mean over the batch, in which a pair and a single answer count as one each."""
        examples = plan.examples[places]
        is_pair = self._table.are_pairs(examples)
        rows = self._table.rows_of(np.concatenate([examples[is_pair], examples[~is_pair]]))
        token_ids, mask = (tensor.to(self.device) for tensor in self._table.sequences.padded(rows))
        scores = hold_end_scores(model(token_ids), mask)
        losses, end = [], 2 * int(is_pair.sum())
        for loss, part in ((self._of_pairs, slice(end)), (self._of_singles, slice(end, None))):
            if len(rows[part]):
                answers = scores[part], token_ids[part], mask[part], rows[part]
                losses.append(loss(*answers, num_examples=len(plan.examples)))
        return torch.stack(losses).sum()

    def _of_pairs(
        self, scores: Tensor, token_ids: Tensor, mask: Tensor, rows: Rows, *, num_examples: int
    ) -> Tensor:
        span = comparison_span(token_ids[0::2], token_ids[1::2], mask[0::2], mask[1::2])
        high, low = scores[0::2], scores[1::2]
        if not self._settings.token_wise:
            # The last column holds the end scores: compared alone, it is the sequence-wise loss.
            high, low, span = high[:, -1:], low[:, -1:], torch.ones_like(span[:, -1:])
        signs = self._signs(rows)
        pairs = ScoredPairs(
            high=high,
            low=low,
            span=span,
            high_signs=signs[0::2],
            low_signs=signs[1::2],
            num_examples=num_examples,
        )
        return self._objective.loss(pairs, self._settings)

    def _of_singles(
        self, scores: Tensor, token_ids: Tensor, mask: Tensor, rows: Rows, *, num_examples: int
    ) -> Tensor:
        assert self._objective.loss_of_singles is not None
        starts = torch.from_numpy(self._table.learn_starts[rows]).to(self.device)
        span = mask & (torch.arange(mask.shape[1], device=self.device) >= starts[:, None])
        if not self._settings.token_wise:
            scores, span = scores[:, -1:], torch.ones_like(span[:, -1:])
        answers = ScoredAnswers(
            scores=scores, span=span, signs=self._signs(rows), num_examples=num_examples
        )
        return self._objective.loss_of_singles(answers, self._settings)

    @torch.no_grad()
    def end_scores(self, model: Scores, examples: Rows) -> Tensor:
        """[A], the score of each whole answer of the examples, in their order."""
        rows = self._table.rows_of(examples)
        token_ids, mask = (tensor.to(self.device) for tensor in self._table.sequences.padded(rows))
        return end_scores(model(token_ids), mask)

    def _signs(self, rows: Rows) -> Tensor:
        is_safe = torch.from_numpy(self._table.is_safe[rows]).to(self.device)
        return torch.where(is_safe, -1.0, 1.0)
