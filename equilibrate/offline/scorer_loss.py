"""The loss of a reward or cost model over some examples, in parts that add up.

An example is a pair of answers or one answer that is labelled by itself; costs may be learned from
both, and a batch then holds both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilibrate.config.fit import FitConfig, ScorerObjectiveConfig
from equilibrate.offline.calibration import calibrate
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.offline.table import AnswerTable, Rows
from equilibrate.preference.batches import ScoredAnswers, ScoredPairs
from equilibrate.preference.spans import comparison_span, end_scores, hold_end_scores
from equilibrate.types import ScorerKind

Scores = Callable[[Tensor], Tensor]
"""Token ids [B, T] to the score [B, T] of the prefix that ends at each token; [B, T, H] where the
objective has several heads."""
Calibrations = dict[ScorerKind, dict[str, float]]


def order_for(kind: ScorerKind, sides: Rows) -> Rows:
    """Places of answers of pairs, those first that are to score higher: for a cost model the one
    with side +1; for a reward model they are in order.

    Args: sides: [2 P].
    """
    order = np.arange(len(sides))
    if kind == "cost":
        order = np.where(np.repeat(sides[0::2] < 0, 2), order ^ 1, order)
    return order


def named_by_head(found: Calibrations) -> dict[str, float]:
    """All in one: of several heads each figure under its head's name, as `cost_sign_accuracy`."""
    return {
        f"{kind}_{name}" if len(found) > 1 else name: value
        for kind, figures in found.items()
        for name, value in figures.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlan:
    """A global batch of examples: every rank finds the same."""

    examples: Rows


class ScorerLoss:
    """Of each pair the first answer is to score higher, at every compared token or at the end."""

    def __init__(self, table: AnswerTable, config: FitConfig, device: torch.device) -> None:
        assert isinstance(config.objective, ScorerObjectiveConfig)
        self.kinds = config.objective.kinds
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
        scores = self._of_heads(model(token_ids))
        scores = {kind: hold_end_scores(of_head, mask) for kind, of_head in scores.items()}
        losses, end = [], 2 * int(is_pair.sum())
        for loss, part in ((self._of_pairs, slice(end)), (self._of_singles, slice(end, None))):
            if len(rows[part]):
                answers = token_ids[part], mask[part], rows[part]
                of_part = {kind: of_head[part] for kind, of_head in scores.items()}
                losses.append(loss(of_part, *answers, num_examples=len(plan.examples)))
        return torch.stack(losses).sum()

    def _of_heads(self, scores: Tensor) -> dict[ScorerKind, Tensor]:
        """Args: scores: [..., H], or [...] of one head."""
        if len(self.kinds) == 1:
            return {self.kinds[0]: scores}
        return dict(zip(self.kinds, scores.unbind(-1), strict=True))

    def _of_pairs(
        self,
        scores: Mapping[ScorerKind, Tensor],
        token_ids: Tensor,
        mask: Tensor,
        rows: Rows,
        *,
        num_examples: int,
    ) -> Tensor:
        span = comparison_span(token_ids[0::2], token_ids[1::2], mask[0::2], mask[1::2])
        signs = self._signs(rows)
        heads: dict[ScorerKind, ScoredPairs] = {}
        for kind, of_head in scores.items():
            order = torch.from_numpy(order_for(kind, self._table.sides[rows])).to(self.device)
            of_head, of_answers, compared = of_head[order], signs[order], span
            high, low = of_head[0::2], of_head[1::2]
            if not self._settings.token_wise:
                # The last column holds the end scores: compared alone, it is the sequence-wise
                # loss.
                high, low, compared = high[:, -1:], low[:, -1:], torch.ones_like(span[:, -1:])
            heads[kind] = ScoredPairs(
                high=high,
                low=low,
                span=compared,
                high_signs=of_answers[0::2],
                low_signs=of_answers[1::2],
                num_examples=num_examples,
            )
        return self._objective.loss(heads, self._settings)

    def _of_singles(
        self,
        scores: Mapping[ScorerKind, Tensor],
        token_ids: Tensor,
        mask: Tensor,
        rows: Rows,
        *,
        num_examples: int,
    ) -> Tensor:
        assert self._objective.loss_of_singles is not None
        costs = scores["cost"]
        starts = torch.from_numpy(self._table.learn_starts[rows]).to(self.device)
        span = mask & (torch.arange(mask.shape[1], device=self.device) >= starts[:, None])
        if not self._settings.token_wise:
            costs, span = costs[:, -1:], torch.ones_like(span[:, -1:])
        answers = ScoredAnswers(
            scores=costs, span=span, signs=self._signs(rows), num_examples=num_examples
        )
        return self._objective.loss_of_singles(answers, self._settings)

    @torch.no_grad()
    def end_scores(self, model: Scores, examples: Rows) -> Tensor:
        """[A, H], the scores of each whole answer of the examples, in their order."""
        rows = self._table.rows_of(examples)
        token_ids, mask = (tensor.to(self.device) for tensor in self._table.sequences.padded(rows))
        of_heads = self._of_heads(model(token_ids)).values()
        return torch.stack([end_scores(of_head, mask) for of_head in of_heads], dim=1)

    def calibrations(self, scores: NDArray[np.float64], examples: Rows) -> Calibrations:
        """Of each head by the answers of the examples, [A, H] scores in their order."""
        found: Calibrations = {}
        rows, is_pair = self._table.rows_of(examples), self._table.are_pairs(examples)
        num_pairs = int(is_pair.sum())
        for column, kind in enumerate(self.kinds):
            order = order_for(kind, self._table.sides[rows[: 2 * num_pairs]])
            # Single answers come last, and say nothing of helpfulness.
            if kind == "cost":
                order = np.concatenate([order, np.arange(2 * num_pairs, len(rows))])
            of_head, is_safe = scores[order, column], self._table.is_safe[rows[order]]
            found[kind] = calibrate(kind, of_head, is_safe, num_pairs=num_pairs)
        return found

    def _signs(self, rows: Rows) -> Tensor:
        is_safe = torch.from_numpy(self._table.is_safe[rows]).to(self.device)
        return torch.where(is_safe, -1.0, 1.0)
