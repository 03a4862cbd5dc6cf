"""Tiny models, scored rollouts and learner ranks for the tests of the learner."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.learner import LearnerSettings, LearnerWorker
from equilibrate.config.base import TextConfig
from equilibrate.config.train import AmaConfig, LearnerConfig, PPOConfig
from equilibrate.learning.scoring import ScoringWorker
from equilibrate.types import Category, FinishReason, Rollout, ScoredRollout
from tests.tiny_models import VOCABULARY

NUM_ROLLOUTS = 16
Snapshot = dict[str, NDArray[np.float32]]


def score_rollouts(models: Path) -> list[ScoredRollout]:
    """Random prompts and responses of different lengths, as if the policy had sampled them."""
    rng = np.random.default_rng(0)
    rollouts = []
    for number in range(NUM_ROLLOUTS):
        num_prompt, num_response = int(rng.integers(2, 6)), int(rng.integers(3, 9))
        length = num_prompt + num_response
        rollouts.append(
            Rollout(
                prompt_id=str(number),
                copy=0,
                category=list(Category)[number % 5],
                policy_version=0,
                token_ids=rng.integers(3, VOCABULARY, length),
                response_mask=np.arange(length) >= num_prompt,
                rollout_log_probs=np.zeros(length, np.float32),
                finish_reason=FinishReason.STOP,
            )
        )
    worker = ScoringWorker(
        reward=str(models / "reward"),
        cost=str(models / "cost"),
        reference=str(models / "policy"),
        device="cpu",
        dtype="float32",
        cpu_threads=1,
        max_tokens_per_batch=64,
        temperature=1.0,
    )
    return [
        replace(s, rollout=replace(s.rollout, rollout_log_probs=s.ref_log_probs))
        for s in worker.score(rollouts)
    ]


def make_settings(models: Path, **changes: Any) -> LearnerSettings:
    rates = {"policy_lr": 1e-4, "critic_lr": 5e-4}
    learner = {"max_tokens_per_batch": 24, **rates, **changes.pop("learner", {})}
    ppo = {"minibatch_size": 8, "epochs": 2, **changes.pop("ppo", {})}
    settings = LearnerSettings(
        policy=str(models / "policy"),
        reward=str(models / "reward"),
        cost=str(models / "cost"),
        ptx="",
        device="cpu",
        dtype="float32",
        cpu_threads=1,
        seed=3,
        iterations=10,
        temperature=1.0,
        text=TextConfig(),
        max_length=32,
        parity_tolerance=1e-4,
        learner=LearnerConfig(**learner),
        ppo=PPOConfig(**ppo),
        ama=AmaConfig(),
    )
    return replace(settings, **changes)


def update(worker: LearnerWorker, scored: list[ScoredRollout], iteration: int = 0) -> Any:
    return worker.update(scored, iteration=iteration, multiplier=1.5, kl_coef=0.1)


def snapshot(worker: LearnerWorker) -> Snapshot:
    """All parameters of all models."""
    return {
        f"{role}/{name}": tensor.numpy().copy()
        for role, model in worker._models.items()
        for name, tensor in model.named_weights()
    }


def assert_equal(first: Snapshot, second: Snapshot, *, only: str = "") -> None:
    for name in first:
        if name.startswith(only):
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def largest_difference(first: Snapshot, second: Snapshot) -> float:
    assert first.keys() == second.keys()
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


def step_error(before: Snapshot, expected: Snapshot, reached: Snapshot) -> float:
    """How far a step ends from the expected one, relative to its length, in the worst tensor; what
    was not to move at all must not have.

    Not in the worst element: where a gradient is almost zero, Adam divides rounding by rounding.
    """
    assert before.keys() == expected.keys() == reached.keys()
    norm = np.linalg.norm
    moved = [name for name in before if not np.array_equal(before[name], expected[name])]
    for name in before.keys() - set(moved):
        np.testing.assert_array_equal(reached[name], before[name], err_msg=name)
    return max(
        float(norm(reached[name] - expected[name]) / norm(expected[name] - before[name]))
        for name in moved
    )


def set_rank(rank: int, world_size: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
