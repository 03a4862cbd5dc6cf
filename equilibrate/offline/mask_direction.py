"""What a mask does to the gradient of offline training: does it turn it, or only lengthen it?

With g the gradient of the preference loss without a mask and m the one with it, over examples of
the classes that the mask touches:

    cosine = <m, g> / (|m| |g|)     1: the same direction; the mask does what a weight would do
    length = |m| / |g|              which weight

Beside it as many tokens drawn at random: what a mask of this share does by chance. The cosine of
two halves of the examples, without a mask, says how far another sample of examples turns it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from equilibrate.config.fit import DpoConfig, FitConfig
from equilibrate.errors import ConfigError, DataError
from equilibrate.offline.policy_loss import PolicyLoss
from equilibrate.offline.table import AnswerTable, Rows
from equilibrate.ppo.batches import passes_of_rank

CREDITS = {"reward": ("token_rewards",), "cost": ("token_costs",)}
"""Scores that a mask of this source reads; of another source both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskDirection:
    """One gradient against another, over the same examples."""

    kept_fraction: float
    """Share of the answers' tokens that have a gradient."""
    cosine: float
    length: float
    """Of the first gradient, as a multiple of the second one's."""


def mask_directions(
    policy: nn.Module, table: AnswerTable, config: FitConfig, *, most_examples: int
) -> Mapping[str, MaskDirection]:
    """`mask` and `random` against no mask, and `halves` of the examples against one another.

    Args:
        config: with a mask (`ama`).
        most_examples: drawn from those that the mask touches, at least 2.

    Raises: ConfigError for fewer than two examples that the mask touches, DataError for a table
    without the scores that it reads.
    """
    _require_credits(table, config)
    touched = masked_examples(table, config)
    order = np.random.default_rng(config.seed).permutation(touched)[: max(2, most_examples)]
    return compare_masks(policy, table, order, config)


def masked_examples(table: AnswerTable, config: FitConfig) -> Rows:
    """Numbers of the examples whose class the mask touches.

    Raises: ConfigError if there are fewer than two.
    """
    assert config.ama is not None
    first = np.arange(len(table)) * table.answers_per_example
    examples = np.flatnonzero(table.may_be_masked(first, config.ama.ungated))
    if len(examples) < 2:
        raise ConfigError(f"ama.ungated leaves {len(examples)} examples to mask; at least 2 needed")
    return examples


def compare_masks(
    policy: nn.Module, table: AnswerTable, examples: Rows, config: FitConfig
) -> Mapping[str, MaskDirection]:
    """As `mask_directions`, over all of `examples`."""
    config = _without_nll(config)
    assert config.ama is not None
    half = len(examples) // 2
    unmasked = config.model_copy(update={"ama": None})
    halves = [
        _gradient(policy, table, part, unmasked)[0] for part in (examples[:half], examples[half:])
    ]
    whole, _ = _gradient(policy, table, examples, unmasked)
    random = config.ama.model_copy(update={"random_control": True})
    directions = {}
    for name, ama in (("mask", config.ama), ("random", random)):
        masked, kept = _gradient(policy, table, examples, config.model_copy(update={"ama": ama}))
        directions[name] = _direction(name, kept, masked, whole)
    return {**directions, "halves": _direction("halves", 1.0, *halves)}


def _gradient(
    policy: nn.Module, table: AnswerTable, examples: Rows, config: FitConfig
) -> tuple[Tensor, float]:
    """Of the mean loss over examples, flat and float64, and the share of tokens that is kept."""
    objective = PolicyLoss(table, config, torch.device("cpu"))
    masks = objective.plan(examples)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    total = [torch.zeros_like(weight) for weight in weights]
    passes = passes_of_rank(
        np.arange(len(examples)),
        table.example_lengths[examples],
        rank=0,
        world_size=1,
        max_tokens=config.trainer.max_tokens_per_batch,
    )
    for places in passes:
        # Only ever called, as a model in training is.
        loss = objective.loss(policy, masks, np.sort(places))  # type: ignore[arg-type]
        parts = torch.autograd.grad(loss, weights, allow_unused=True)
        for whole, part in zip(total, parts, strict=True):
            if part is not None:
                whole += part
    num_tokens = masks.positive.tokens + masks.negative.tokens
    flat = torch.cat([whole.flatten() for whole in total]).double()
    return flat, int(masks.gradient_mask.sum()) / max(1, num_tokens)


def _require_credits(table: AnswerTable, config: FitConfig) -> None:
    """Scores are 0 where a run had no use for them: such a mask would keep every answer whole."""
    assert config.ama is not None
    for name in CREDITS.get(config.ama.source, (*CREDITS["reward"], *CREDITS["cost"])):
        if name not in table.scores or not table.scores[name].any():
            raise DataError(
                f"answers must have {name}, which ama.source={config.ama.source} reads; "
                "score them for such a mask"
            )


def _direction(name: str, kept: float, masked: Tensor, whole: Tensor) -> MaskDirection:
    lengths = float(masked.norm()), float(whole.norm())
    if not all(lengths):
        raise DataError(f"{name}: a gradient of 0 has no direction; give more examples")
    return MaskDirection(
        kept_fraction=kept,
        cosine=float(masked @ whole) / (lengths[0] * lengths[1]),
        length=lengths[0] / lengths[1],
    )


def _without_nll(config: FitConfig) -> FitConfig:
    """The cross entropy of a chosen answer is another loss, which the mask may not touch."""
    if not isinstance(config.objective, DpoConfig):
        return config
    return config.model_copy(
        update={"objective": config.objective.model_copy(update={"nll_coef": 0.0})}
    )
