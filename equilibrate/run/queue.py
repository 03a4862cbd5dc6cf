"""Sampling ahead of learning: the rollouts that wait for the learner, exactly resumed.

The queue is the only one to change the generators' weights, because it knows what is under way.
With `max_policy_lag` L the responses of iteration i come from policy version max(0, i - L): those
of i + L are sampled while i is scored and learned. L = 0 is plain on-policy PPO.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import numpy as np

from equilibrate.errors import InputLostError, NumericsError
from equilibrate.interfaces import Learner, PromptSampler, RolloutPool
from equilibrate.types import Category, FinishReason, Message, PromptBatch, Rollout, Weights

Pending = Callable[[], list[Rollout]]
Clock = Callable[[str], AbstractContextManager[object]]
"""Measures a phase by its name."""


class RolloutQueue:
    """Asks for rollouts ahead of time and hands them out in the order of iterations."""

    def __init__(
        self,
        sampler: PromptSampler,
        rollouts: RolloutPool,
        *,
        max_policy_lag: int,
        iterations: int,
    ) -> None:
        self._sampler = sampler
        self._rollouts = rollouts
        self._max_policy_lag = max_policy_lag
        self._iterations = iterations
        self._pending: dict[int, Pending] = {}

    def take(self, iteration: int) -> list[Rollout]:
        """The rollouts to learn from; those up to `max_policy_lag` iterations on are under way.

        The generators must hold policy version `iteration`.
        """
        last = min(iteration + self._max_policy_lag, max(iteration, self._iterations - 1))
        for number in range(iteration, last + 1):
            if number not in self._pending:
                batch = self._sampler.next_batch(number)
                self._pending[number] = self._rollouts.start(batch, policy_version=iteration)
        return self._pending.pop(iteration)()

    def publish(self, weights: Weights, clock: Clock = nullcontext) -> None:
        """Bring the generators to these weights, once what is under way has finished.

        They change version between responses only, so that every response has one version, and
        which one does not depend on anybody's speed.
        """
        with clock("rollout"):
            self._wait()
        with clock("sync"):
            self._rollouts.sync(weights)

    def _wait(self) -> None:
        for number, pending in self._pending.items():
            self._pending[number] = _done(pending())

    def save(self, folder: Path) -> None:
        """Write the rollouts that wait; a resumed run could not sample them from older weights."""
        self._wait()
        for number, pending in self._pending.items():
            np.savez(_file(folder, number), **_to_arrays(pending()))  # type: ignore[arg-type]

    def load(self, folder: Path) -> None:
        """Forget what is under way and continue with what `save` wrote."""
        for pending in self._pending.values():
            # It has to end before the next sync; nobody will read what a broken policy said, and
            # nobody else could say it where its weights are lost.
            with suppress(NumericsError, InputLostError):
                pending()
        self._pending = {}
        for file in sorted(folder.glob("rollouts-*.npz")):
            with np.load(file, allow_pickle=False) as arrays:
                rollouts = _from_arrays(arrays)
            self._pending[int(file.stem.removeprefix("rollouts-"))] = _done(rollouts)


class AverageRollouts:
    """Samples from the average of the policy's weights, for whoever measures it (`Generator`);
    afterwards the generators hold the last weights again."""

    def __init__(self, rollouts: RolloutPool, queue: RolloutQueue, learner: Learner) -> None:
        self._rollouts = rollouts
        self._queue = queue
        self._learner = learner

    def generate(self, batch: PromptBatch, policy_version: int) -> list[Rollout]:
        self._queue.publish(self._learner.publish(policy_version, averaged=True))
        answers = self._rollouts.generate(batch, policy_version)
        self._queue.publish(self._learner.publish(policy_version))
        return answers


def _done(rollouts: list[Rollout]) -> Pending:
    return lambda: rollouts


def _file(folder: Path, iteration: int) -> Path:
    return folder / f"rollouts-{iteration}.npz"


def _to_arrays(rollouts: Sequence[Rollout]) -> dict[str, np.ndarray]:
    labels = [
        {
            "prompt_id": r.prompt_id,
            "copy": r.copy,
            "category": r.category.value,
            "policy_version": r.policy_version,
            "finish_reason": r.finish_reason.value,
            "messages": [[turn.role, turn.content] for turn in r.messages],
        }
        for r in rollouts
    ]
    return {
        "labels": np.array(json.dumps(labels)),
        "lengths": np.array([len(r.token_ids) for r in rollouts]),
        "token_ids": np.concatenate([r.token_ids for r in rollouts]),
        "response_mask": np.concatenate([r.response_mask for r in rollouts]),
        "rollout_log_probs": np.concatenate([r.rollout_log_probs for r in rollouts]),
    }


def _from_arrays(arrays: np.lib.npyio.NpzFile) -> list[Rollout]:
    cuts = np.cumsum(arrays["lengths"])[:-1]
    names = ("token_ids", "response_mask", "rollout_log_probs")
    parts = zip(*(np.split(arrays[name], cuts) for name in names), strict=True)
    return [
        Rollout(
            prompt_id=label["prompt_id"],
            copy=label["copy"],
            category=Category(label["category"]),
            policy_version=label["policy_version"],
            finish_reason=FinishReason(label["finish_reason"]),
            messages=tuple(
                Message(role=role, content=content) for role, content in label.get("messages", ())
            ),
            **dict(zip(names, part, strict=True)),
        )
        for label, part in zip(json.loads(str(arrays["labels"])), parts, strict=True)
    ]
