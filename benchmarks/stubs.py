"""A worker that answers everything and computes nothing: what is left is the cost of the driver."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from equilibrate.types import (
    FinishReason,
    Rollout,
    RolloutRequest,
    ScoredRollout,
    UpdateMetrics,
)


class StubWorker:
    """Rollout worker, scoring worker and learner rank in one; sleeps as long as they would work."""

    def __init__(
        self, seconds: Mapping[str, float], *, response_tokens: int, weight_bytes: int
    ) -> None:
        """Args: seconds: of `rollout`, `score`, `update` and `sync`, whatever they are given."""
        self._seconds = dict(seconds)
        self._response_tokens = response_tokens
        self._weights = np.zeros(weight_bytes, np.uint8)

    def ready(self) -> bool:
        return True

    def generate(self, requests: Sequence[RolloutRequest], policy_version: int) -> list[Rollout]:
        time.sleep(self._seconds["rollout"])
        return [
            stub_rollout(request, policy_version, self._response_tokens) for request in requests
        ]

    def update_weights(self, weights: object, version: int) -> None:
        time.sleep(self._seconds["sync"])

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        time.sleep(self._seconds["score"])
        return [stub_scored(rollout) for rollout in rollouts]

    def update(
        self, scored: Sequence[ScoredRollout], *, iteration: int, multiplier: float, kl_coef: float
    ) -> UpdateMetrics:
        time.sleep(self._seconds["update"])
        return UpdateMetrics(values={"policy_loss": 0.0})

    def pack_weights(self, *, averaged: bool = False) -> tuple[object, int]:
        return self._weights, 0


def stub_rollout(request: RolloutRequest, policy_version: int, response_tokens: int) -> Rollout:
    length = len(request.token_ids) + response_tokens
    return Rollout(
        prompt_id=request.prompt_id,
        copy=request.copy,
        category=request.category,
        policy_version=policy_version,
        token_ids=np.arange(length, dtype=np.int64),
        response_mask=np.arange(length) >= len(request.token_ids),
        rollout_log_probs=np.zeros(length, np.float32),
        finish_reason=FinishReason.LENGTH,
    )


def stub_scored(rollout: Rollout) -> ScoredRollout:
    zeros = np.zeros(len(rollout.token_ids), np.float32)
    return ScoredRollout(
        rollout=rollout,
        reward=0.0,
        cost=0.0,
        token_rewards=zeros,
        token_costs=zeros,
        ref_log_probs=zeros,
    )
