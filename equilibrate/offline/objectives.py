"""What offline training can minimise: for each objective its view of the data and its loss.

A new one has its loss in `equilibrate.preference`, its settings in `equilibrate.config.fit`, a line
in `OBJECTIVES`, and its test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from equilibrate.config.fit import (
    ArsConfig,
    BfpoConfig,
    CostConfig,
    DertaConfig,
    DpoConfig,
    RewardConfig,
    ScorerConfig,
    SftConfig,
)
from equilibrate.data.answers import (
    Answer,
    demonstrations,
    harm_labels,
    harm_pairs,
    help_and_harm_pairs,
    pairs,
    parted,
)
from equilibrate.data.columns import Columns
from equilibrate.preference.batches import AnswerBatch, ScoredAnswers, ScoredPairs
from equilibrate.preference.derta import derta_answers
from equilibrate.preference.losses import (
    sft_loss,
    token_cost_loss,
    token_reward_loss,
    token_sign_loss,
)
from equilibrate.preference.policy_losses import bfpo_labels, bfpo_loss, dpo_loss, unlikelihood_loss
from equilibrate.types import ScorerKind

PairsOfHeads = Mapping[ScorerKind, ScoredPairs]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineObjective:
    """One objective; whether it trains a policy or a scorer stands in its settings (`trains`)."""

    view: Callable[[Columns, Any, int], list[Answer]]
    """(data set, settings, seed) -> answers, those of one example side by side."""
    loss: Callable[[Any, Any], Tensor]
    """(a rank's part of a batch, settings) -> its part of the mean over the global batch. The part
    is an `AnswerBatch` of a policy's log-probs, or of each head of a scorer its `ScoredPairs`."""
    answers_per_example: int
    needs_reference: bool = False
    loss_of_singles: Callable[[ScoredAnswers, Any], Tensor] | None = None
    """Its loss of answers that are labelled one by one, for those that can learn from them, beside
    pairs or alone: an example is then one answer. The view puts them after the pairs."""
    learns: Literal["preferred", "better", "safer", "both"] = "preferred"
    """Which answer of a pair stands first: as `data.prefer` says, or by one label alone; `both`
    stands for the better one of rows that say which is safer, too."""


def _view_demonstrations(columns: Columns, settings: SftConfig, seed: int) -> list[Answer]:
    return demonstrations(columns)


def _view_pairs(columns: Columns, settings: DpoConfig, seed: int) -> list[Answer]:
    return pairs(columns, by="preference")


def _view_derta(columns: Columns, settings: DertaConfig, seed: int) -> list[Answer]:
    return derta_answers(columns, refusal=settings.refusal, seed=seed)


def _sft(batch: AnswerBatch, settings: SftConfig | DertaConfig) -> Tensor:
    return sft_loss(batch.log_probs, batch.gradient_mask, num_tokens=batch.positive.learned)


def _dpo(batch: AnswerBatch, settings: DpoConfig) -> Tensor:
    chosen, rejected = batch.pairs
    loss = dpo_loss(chosen, rejected, beta=settings.beta, num_pairs=batch.num_examples)
    if not settings.nll_coef:
        return loss
    # A token that the mask takes out of one term and not of the other is still learned: per token
    # this term pulls harder than the first.
    mask, count = batch.gradient_mask, batch.positive.learned
    if settings.nll_on == "all":
        mask, count = batch.response_mask, batch.positive.tokens
    nll = sft_loss(batch.log_probs, mask & (batch.sides > 0)[:, None], num_tokens=count)
    return loss + settings.nll_coef * nll


def _ars(batch: AnswerBatch, settings: ArsConfig) -> Tensor:
    is_best = (batch.sides > 0)[:, None]
    mask = batch.gradient_mask & is_best
    loss = sft_loss(batch.log_probs, mask, num_tokens=batch.positive.learned)
    if not settings.negative_coef:
        return loss
    negative = unlikelihood_loss(
        batch.log_probs, batch.gradient_mask & ~is_best, num_tokens=batch.negative.learned
    )
    return loss + settings.negative_coef * negative


def _view_by_helpfulness(columns: Columns, settings: BfpoConfig, seed: int) -> list[Answer]:
    return pairs(columns, by="helpfulness", needs_safety=True)


def _bfpo(batch: AnswerBatch, settings: BfpoConfig) -> Tensor:
    is_safe = batch.is_safe[batch.is_used]
    labels = bfpo_labels(
        is_safe[0::2], is_safe[1::2], safety_weight=settings.safety_weight, shift=settings.shift
    )
    return bfpo_loss(*batch.pairs, labels, tau=settings.tau, num_pairs=batch.num_examples)


def _view_reward(columns: Columns, settings: RewardConfig, seed: int) -> list[Answer]:
    return pairs(columns, by="helpfulness")


def _reward(heads: PairsOfHeads, settings: RewardConfig | ScorerConfig) -> Tensor:
    batch = heads["reward"]
    return token_reward_loss(
        batch.high,
        batch.low,
        batch.span,
        regularization=settings.regularization,
        num_pairs=batch.num_examples,
    )


def _with_singles(
    view: Callable[[Columns], list[Answer]],
) -> Callable[[Columns, CostConfig | ScorerConfig, int], list[Answer]]:
    """A view of pairs, and behind them answers that are labelled one by one."""

    def both(columns: Columns, settings: CostConfig | ScorerConfig, seed: int) -> list[Answer]:
        of_pairs, singles = parted(columns)
        answers = view(of_pairs) if of_pairs["prompt"] else []
        return answers + (harm_labels(singles) if singles["prompt"] else [])

    return both


def _cost(heads: PairsOfHeads, settings: CostConfig | ScorerConfig) -> Tensor:
    batch = heads["cost"]
    return token_cost_loss(
        batch.low,
        batch.high,
        batch.low_signs,
        batch.high_signs,
        batch.span,
        regularization=settings.regularization,
        num_pairs=batch.num_examples,
    )


def _both(heads: PairsOfHeads, settings: ScorerConfig) -> Tensor:
    return _reward(heads, settings) + _cost(heads, settings)


def _signs(batch: ScoredAnswers, settings: CostConfig | ScorerConfig) -> Tensor:
    return token_sign_loss(
        batch.scores,
        batch.signs,
        batch.span,
        regularization=settings.regularization,
        num_answers=batch.num_examples,
    )


OBJECTIVES: dict[str, OfflineObjective] = {
    "reward": OfflineObjective(
        view=_view_reward, loss=_reward, answers_per_example=2, learns="better"
    ),
    "cost": OfflineObjective(
        view=_with_singles(harm_pairs),
        loss=_cost,
        loss_of_singles=_signs,
        answers_per_example=2,
        learns="safer",
    ),
    "scorer": OfflineObjective(
        view=_with_singles(help_and_harm_pairs),
        loss=_both,
        loss_of_singles=_signs,
        answers_per_example=2,
        learns="both",
    ),
    "sft": OfflineObjective(view=_view_demonstrations, loss=_sft, answers_per_example=1),
    "dpo": OfflineObjective(
        view=_view_pairs, loss=_dpo, answers_per_example=2, needs_reference=True
    ),
    "bfpo": OfflineObjective(
        view=_view_by_helpfulness,
        loss=_bfpo,
        answers_per_example=2,
        needs_reference=True,
        learns="better",
    ),
    "derta": OfflineObjective(view=_view_derta, loss=_sft, answers_per_example=1),
    # Its data are made by the policy itself: best and worst of its answers, as pairs.
    "ars": OfflineObjective(view=_view_pairs, loss=_ars, answers_per_example=2),
}
