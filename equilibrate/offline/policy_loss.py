"""Whose answers move the policy by how much: masks, counts and loss of one batch of examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equilibrate.ama.masking import kept_tokens
from equilibrate.ama.masks import full_where_empty, keep_ends, random_mask
from equilibrate.config.fit import AnswerMaskConfig, FitConfig
from equilibrate.errors import ConfigError
from equilibrate.models.trainable import Trainable
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.offline.table import AnswerTable, PaddedAnswers, Rows
from equilibrate.preference.batches import AnswerBatch, SideCounts
from equilibrate.preference.policy_losses import masked_log_ratios
from equilibrate.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Of a global batch, in the order of its examples: every rank finds the same."""

    examples: Rows
    gradient_mask: Tensor
    """[B, T] bool."""
    is_used: Tensor
    """[B] bool."""
    positive: SideCounts
    negative: SideCounts
    num_examples: int


class PolicyLoss:
    """The loss of some examples, in parts that add up to the mean over their batch."""

    def __init__(self, table: AnswerTable, config: FitConfig, device: torch.device) -> None:
        self._table = table
        self._config = config
        self.device = device
        self._objective = OBJECTIVES[config.objective.type]

    def plan(self, examples: Rows) -> BatchPlan:
        """Which tokens of a global batch may move the policy."""
        ama = self._config.ama
        answers = self._padded(examples)
        per_example = self._table.answers_per_example
        mask, used = answers.response_mask, answers.response_mask.any(1)
        gradient_mask = mask
        if ama is not None:
            gradient_mask = self._agreeing(answers, ama)
            used = gradient_mask.any(1)
            if ama.when_empty == "full":
                gradient_mask, used = full_where_empty(gradient_mask, mask), mask.any(1)
            # An answer that is never taught to end goes on for ever.
            gradient_mask = keep_ends(gradient_mask, mask, answers.sides > 0)
            if ama.random_control:
                seed = derive_seed(self._config.seed, *examples.tolist())
                gradient_mask = _drawn(gradient_mask, answers, seed)
        # An example needs all its answers: a chosen one alone cannot be compared.
        used = used.view(-1, per_example).all(1)
        is_used = used.repeat_interleave(per_example)
        mask, gradient_mask = (m & is_used[:, None] for m in (mask, gradient_mask))
        divisor = mask if ama is not None and ama.normalizer == "all" else gradient_mask
        positive = answers.sides > 0

        def counted(side: Tensor) -> SideCounts:
            return SideCounts(tokens=int(mask[side].sum()), learned=int(divisor[side].sum()))

        return BatchPlan(
            examples=examples,
            gradient_mask=gradient_mask,
            is_used=is_used,
            positive=counted(positive),
            negative=counted(~positive),
            num_examples=int(used.sum()),
        )

    def loss(self, policy: Trainable, masks: BatchPlan, places: Rows) -> Tensor:
        """The part of the examples at `places` of the batch, in one pass of the policy."""
        rows = self._rows(places)
        answers = self._padded(masks.examples[places])
        width = answers.token_ids.shape[1]
        gradient_mask = masks.gradient_mask[rows, :width]
        is_used = masks.is_used[rows]
        mask = answers.response_mask & is_used[:, None]
        token_ids, targets, mask, gradient_mask, reference = (
            tensor.to(self.device)
            for tensor in (
                answers.token_ids, answers.targets, mask, gradient_mask, answers.ref_log_probs,
            )
        )  # fmt: skip
        log_probs, _ = policy(token_ids, mask, 1.0, 0, targets)
        log_ratios = torch.zeros(len(token_ids), device=self.device)
        if self._objective.needs_reference:
            mode = "gradient" if self._config.ama is None else self._config.ama.mode
            log_ratios = masked_log_ratios(log_probs, reference, mask, gradient_mask, mode=mode)
        batch = AnswerBatch(
            log_probs=log_probs,
            log_ratios=log_ratios,
            response_mask=mask,
            gradient_mask=gradient_mask,
            sides=answers.sides.to(self.device),
            is_safe=answers.is_safe.to(self.device),
            is_used=is_used.to(self.device),
            num_examples=masks.num_examples,
            positive=masks.positive,
            negative=masks.negative,
        )
        return self._objective.loss(batch, self._config.objective)

    def _rows(self, places: Rows) -> Tensor:
        return torch.from_numpy(self._table.rows_of(places))

    def _padded(self, examples: Rows) -> PaddedAnswers:
        ama = self._config.ama
        return self._table.padded(
            self._table.rows_of(examples), ungated=ama.ungated if ama is not None else ()
        )

    def _agreeing(self, answers: PaddedAnswers, ama: AnswerMaskConfig) -> Tensor:
        nothing = torch.zeros_like(answers.token_rewards)
        return kept_tokens(
            ama,
            answers.sides[:, None].expand(answers.token_ids.shape),
            token_rewards=answers.token_rewards,
            token_costs=answers.token_costs,
            values=nothing,
            cost_values=nothing,
            response_mask=answers.response_mask,
            may_be_masked=answers.may_be_masked,
            multiplier=self._config.multiplier,
            dead_band=ama.dead_band,
        )


def require_something_to_mask(table: AnswerTable, ama: AnswerMaskConfig) -> None:
    """Raises: ConfigError if every class of the data is ungated, as where the data name none."""
    classes = table.classes
    if classes <= set(ama.ungated):
        raise ConfigError(
            f"ama.ungated ({', '.join(ama.ungated)}) leaves nothing to mask: the examples are all "
            f"{' or '.join(sorted(classes))}; try ama.ungated=[], or a column category in the data"
        )


def _drawn(mask: Tensor, answers: PaddedAnswers, seed: int) -> Tensor:
    """As many tokens as the finished mask keeps in the rows it masks, drawn at random."""
    maskable = answers.response_mask & answers.may_be_masked[:, None]
    generator = torch.Generator().manual_seed(seed)
    drawn = random_mask(maskable, int((mask & maskable).sum()), generator)
    return drawn | (mask & ~maskable)


def summarise_masks(objective: PolicyLoss, table: AnswerTable, batch_size: int) -> dict[str, float]:
    """What one pass over the table learns from: answers, tokens, and the share that masks keep."""
    tokens = kept = examples = 0
    for start in range(0, len(table), batch_size):
        masks = objective.plan(np.arange(start, min(start + batch_size, len(table))))
        tokens += masks.positive.tokens + masks.negative.tokens
        kept += int(masks.gradient_mask.sum())
        examples += masks.num_examples
    return {
        "examples": float(examples),
        "trained_tokens": float(kept),
        "kept_fraction": kept / max(tokens, 1),
    }
