"""Stand-ins for the seams of `equilibrate.interfaces`, for unit tests of what sits above them.

They keep a common journal, so that a test can state in which order the driver does things.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equilibrate.errors import WorkerLostError
from equilibrate.types import (
    Category,
    FinishReason,
    Prompt,
    PromptBatch,
    Rollout,
    ScoredRollout,
    UpdateMetrics,
    Weights,
)


def make_prompt(
    text: str = "how ?", category: Category = Category.GENERAL, cell: str = ""
) -> Prompt:
    return Prompt(prompt_id=text, text=text, token_ids=(5, 6), category=category, cell=cell)


def encode_response(tokenizer: Any, response: str) -> list[int]:
    """What the built-in world's tokenizer makes of an answer and its end."""
    return list(tokenizer.encode(f"{response} <eos>", add_special_tokens=False))


def make_rollout(
    prompt: Prompt | None = None, *, policy_version: int = 0, response: Sequence[int] = (7, 2)
) -> Rollout:
    prompt = prompt or make_prompt()
    length = len(prompt.token_ids) + len(response)
    response_mask = np.arange(length) >= len(prompt.token_ids)
    return Rollout(
        prompt_id=prompt.prompt_id,
        copy=0,
        category=prompt.category,
        policy_version=policy_version,
        token_ids=np.array((*prompt.token_ids, *response), dtype=np.int64),
        response_mask=response_mask,
        rollout_log_probs=np.where(response_mask, -0.5, 0.0).astype(np.float32),
        finish_reason=FinishReason.STOP,
    )


def make_scored(
    rollout: Rollout | None = None, *, reward: float = 1.0, cost: float = -1.0
) -> ScoredRollout:
    rollout = rollout or make_rollout()
    length = len(rollout.token_ids)
    return ScoredRollout(
        rollout=rollout,
        reward=reward,
        cost=cost,
        token_rewards=np.full(length, reward, np.float32),
        token_costs=np.full(length, cost, np.float32),
        ref_log_probs=np.where(rollout.response_mask, -0.75, 0.0).astype(np.float32),
    )


class FakeSampler:
    """Hands out prompts named after a counter, which is its whole state."""

    def __init__(self, prompts_per_iteration: int = 2) -> None:
        self.count = 0
        self.prompts_per_iteration = prompts_per_iteration
        self.observed = 0

    def next_batch(self, iteration: int) -> PromptBatch:
        start, self.count = self.count, self.count + self.prompts_per_iteration
        prompts = tuple(make_prompt(f"prompt {i}") for i in range(start, self.count))
        return PromptBatch(iteration=iteration, prompts=prompts)

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        self.observed += len(scored)

    def realised_mixture(self) -> Mapping[Category, float]:
        return {Category.GENERAL: 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


class FakeRolloutPool:
    """Serves the version it was synced to last, and refuses any other."""

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.version: int | None = None
        self.prompts: list[str] = []
        self.num_running = 0

    def generate(self, batch: PromptBatch, policy_version: int) -> list[Rollout]:
        return self.start(batch, policy_version)()

    def start(self, batch: PromptBatch, policy_version: int) -> Callable[[], list[Rollout]]:
        assert policy_version == self.version, (policy_version, self.version)
        self.journal.append(f"generate {policy_version}")
        self.prompts += [prompt.text for prompt in batch.prompts]
        self.num_running += 1

        def finish() -> list[Rollout]:
            self.num_running -= 1
            return [make_rollout(p, policy_version=policy_version) for p in batch.prompts]

        return finish

    def sync(self, weights: Weights) -> None:
        assert self.num_running == 0, "the weights would change under running requests"
        self.journal.append(f"sync {weights.version}")
        self.version = weights.version


class FakeScorer:
    def __init__(self, journal: list[str]) -> None:
        self.journal = journal

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        self.journal.append("score")
        return [make_scored(rollout) for rollout in rollouts]


class FakeLearner:
    """Counts its updates; skips or dies at the update numbers, or dies or finds the disk full at
    the saves or restarts, it is told."""

    def __init__(
        self,
        journal: list[str],
        *,
        skip_at: Sequence[int] = (),
        lost_at: Sequence[int] = (),
        lost_at_save: Sequence[int] = (),
        lost_at_restart: Sequence[int] = (),
        full_at_save: Sequence[int] = (),
    ) -> None:
        self.journal = journal
        self.full_at_save = full_at_save
        self.num_updates = 0
        self.calls = 0
        self.saves = 0
        self.restarts = 0
        self.skip_at = skip_at
        self.lost_at = lost_at
        self.lost_at_save = lost_at_save
        self.lost_at_restart = lost_at_restart
        self.multipliers: list[float] = []

    def update(
        self, scored: Sequence[ScoredRollout], *, iteration: int, multiplier: float, kl_coef: float
    ) -> UpdateMetrics:
        self.calls += 1
        if self.calls in self.lost_at:
            raise WorkerLostError("a learner rank is gone")
        self.journal.append(f"update {iteration}")
        self.multipliers.append(multiplier)
        skipped = self.calls in self.skip_at
        self.num_updates += not skipped
        # As if the policy moved away from its reference by 0.01 nats each time.
        values = {"policy_loss": float(iteration), "kl": 0.01 * iteration}
        return UpdateMetrics(values=values, skipped=skipped)

    def publish(self, version: int, *, averaged: bool = False) -> Weights:
        if averaged:
            self.journal.append(f"average {version}")
        return Weights(version=version, reference=self.num_updates)

    def save(self, folder: Path) -> None:
        self.saves += 1
        if self.saves in self.lost_at_save:
            raise WorkerLostError("a learner rank is gone")
        if self.saves in self.full_at_save:
            raise OSError(errno.ENOSPC, "No space left on device")
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps(self.num_updates))

    def load(self, folder: Path) -> None:
        self.num_updates = json.loads((folder / "state.json").read_text())

    def export(self, folder: Path, *, averaged: bool = False) -> None:
        self.journal.append("export")

    def restart(self) -> None:
        self.restarts += 1
        self.journal.append("restart")
        if self.restarts in self.lost_at_restart:
            raise WorkerLostError("a learner rank is gone")
        self.num_updates = 0


class FakeController:
    """Its value is the number of times it was fed."""

    def __init__(self) -> None:
        self.value = 0.0

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        self.value += 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


class MemorySink:
    """Rows in a list; the offset is their number."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.seconds: list[Mapping[str, float]] = []

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self.rows.append((iteration, dict(values)))

    def write_seconds(self, iteration: int, seconds: Mapping[str, float]) -> None:
        self.seconds.append(seconds)

    def offset(self) -> int:
        return len(self.rows)

    def rewind(self, offset: int) -> None:
        del self.rows[offset:]

    def close(self) -> None:
        pass
