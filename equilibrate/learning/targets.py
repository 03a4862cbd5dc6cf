"""From scored rollouts to what one update learns: the maths of PPO-Lagrangian and AMA, in order.

Every rank holds the whole batch of an iteration and computes the same targets from it, so that
baselines and token counts are global without any communication.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from equilibrate.ama.masking import kept_tokens
from equilibrate.ama.signals import response_signal
from equilibrate.config.train import AmaConfig, PPOConfig
from equilibrate.ppo.estimators import ESTIMATORS, Signal
from equilibrate.ppo.kl import kl_penalty, shape_rewards
from equilibrate.ppo.ratios import log_ratios, truncated_importance
from equilibrate.types import TokenBatch, TrainBatch, combined

SCORE_CLIP = 50.0
"""Shaped rewards and costs are clamped to this size (Safe RLHF)."""
IMPORTANCE_CAP = 2.0
"""Largest weight of a token."""


def make_train_batch(
    tokens: TokenBatch,
    *,
    multiplier: float,
    kl_coef: float,
    ppo: PPOConfig,
    ama: AmaConfig | None,
    is_weighed: bool,
    seed: int,
) -> TrainBatch:
    """Advantages, returns and gradient mask of one iteration.

    Args:
        multiplier: lambda >= 0; with 0 the advantages are those of plain PPO.
        is_weighed: tokens get importance weights, because an older policy sampled them or the
            generator rounds in its own way.
        seed: of AMA's random control.
    """
    mask = tokens.response_mask
    kl = kl_penalty(tokens.old_log_probs, tokens.ref_log_probs, mask)
    (reward_advantages, reward_returns), (cost_advantages, cost_returns) = _estimate(
        tokens, kl, kl_coef, ppo
    )
    advantages = combined(reward_advantages, cost_advantages, multiplier)
    if is_weighed:
        # The weights are positive: they move no token across the zero at which AMA keeps it.
        advantages = advantages * importance_weights(tokens)
    return TrainBatch(
        tokens=tokens,
        advantages=advantages,
        returns=reward_returns,
        cost_returns=cost_returns,
        gradient_mask=mask
        if ama is None
        else _ama_mask(tokens, advantages, multiplier=multiplier, ama=ama, seed=seed),
    )


def _estimate(
    tokens: TokenBatch, kl: Tensor, kl_coef: float, ppo: PPOConfig
) -> list[tuple[Tensor, Tensor]]:
    """(advantages, returns) of the reward and of the cost."""
    mask = tokens.response_mask
    estimate = ESTIMATORS[ppo.advantage]

    def shaped(scores: Tensor, sign: Literal[1, -1]) -> Tensor:
        return shape_rewards(scores, kl, mask, kl_coef=kl_coef, sign=sign, clip=SCORE_CLIP)

    def signal(scores: Tensor, values: Tensor, sign: Literal[1, -1]) -> Signal:
        return Signal(
            scores=scores,
            penalties=shaped(torch.zeros_like(scores), sign),
            rewards=shaped(scores, sign),
            values=values,
            response_mask=mask,
            groups=tokens.prompt_groups,
        )

    return [
        estimate(signal(tokens.reward, tokens.values, 1), ppo),
        estimate(signal(tokens.cost, tokens.cost_values, -1), ppo),
    ]


def batch_metrics(train: TrainBatch, entropies: Tensor) -> dict[str, float]:
    """What the batch says before the update; entropies [B, T], nats, 0 outside the response."""
    tokens = train.tokens
    mask = tokens.response_mask
    num_tokens = int(mask.sum())
    divisor = max(1, num_tokens)
    kl = kl_penalty(tokens.old_log_probs, tokens.ref_log_probs, mask)
    return {
        "num_tokens": float(num_tokens),
        "kl": float(kl.sum()) / divisor,
        "entropy": float(entropies.sum()) / divisor,
        "kept_fraction": float(train.gradient_mask.sum()) / divisor,
    }


def importance_weights(tokens: TokenBatch) -> Tensor:
    """[B, T], of the learner's policy over the one that sampled."""
    return truncated_importance(
        tokens.old_log_probs, tokens.rollout_log_probs, tokens.response_mask, cap=IMPORTANCE_CAP
    )


def staleness_metrics(tokens: TokenBatch) -> dict[str, float]:
    """How far the sampling policy is from the one that learns."""
    mask = tokens.response_mask
    divisor = max(1, int(mask.sum()))
    weights = importance_weights(tokens)[mask]
    difference = log_ratios(tokens.old_log_probs, tokens.rollout_log_probs, mask)[mask]
    return {
        # Never negative, and of less variance than the mean difference (Schulman 2020, k3).
        "mismatch_kl": float((difference.exp() - 1.0 - difference).sum()) / divisor,
        "importance_weight": float(weights.sum()) / divisor,
        "importance_capped": float((weights >= IMPORTANCE_CAP).sum()) / divisor,
    }


def _ama_mask(
    tokens: TokenBatch, advantages: Tensor, *, multiplier: float, ama: AmaConfig, seed: int
) -> Tensor:
    return kept_tokens(
        ama,
        advantages,
        token_rewards=tokens.token_rewards,
        token_costs=tokens.token_costs,
        values=tokens.values,
        cost_values=tokens.cost_values,
        response_mask=tokens.response_mask,
        may_be_masked=tokens.may_be_masked,
        multiplier=multiplier,
        control=torch.Generator().manual_seed(seed) if ama.random_control else None,
        response_scores=_response_scores(tokens, multiplier, ama),
    )


def _response_scores(tokens: TokenBatch, multiplier: float, ama: AmaConfig) -> Tensor | None:
    """Whose sign is the side of a whole response: its score, above the batch mean or above zero."""
    if ama.side == "token":
        return None
    scores = response_signal(
        ama.source, reward=tokens.reward, cost=tokens.cost, multiplier=multiplier
    )
    if ama.baseline != "batch_mean":
        return scores
    # A row without a response was left out, and has no score.
    return scores - scores[tokens.response_mask.any(1)].mean()
