"""The seams of one iteration: what the driver sees, and what `actors/` implements.

Every call blocks until its answer is complete or its deadline has passed. A worker that can be
replaced is replaced behind these calls; a loss that the callee cannot repair arrives as
`WorkerLostError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from equilibrate.types import (
    Category,
    PromptBatch,
    Rollout,
    ScoredRollout,
    UpdateMetrics,
    Weights,
)


class PromptSampler(Protocol):
    """Feeds prompts in the wanted mixture of classes."""

    def next_batch(self, iteration: int) -> PromptBatch: ...

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        """Learn from the outcome; a fixed schedule ignores it."""

    def realised_mixture(self) -> Mapping[Category, float]:
        """Share of each class among all prompts handed out so far; sums to 1."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Generator(Protocol):
    """Samples responses from one stated version of the policy."""

    def generate(self, batch: PromptBatch, policy_version: int) -> list[Rollout]:
        """One rollout per prompt and copy, in the order of the batch, all from `policy_version`."""


class RolloutPool(Generator, Protocol):
    """The generators of a run, whose weights can be changed."""

    def start(self, batch: PromptBatch, policy_version: int) -> Callable[[], list[Rollout]]:
        """Begin what `generate` does; calling the answer waits for the rollouts.

        It must be called before the next `sync`.
        """

    def sync(self, weights: Weights) -> None:
        """Bring every generator to `weights.version`; afterwards only that version is served."""


class Scorer(Protocol):
    """Reward, cost and reference log-probs of finished rollouts."""

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]: ...


class Learner(Protocol):
    """Holds policy, critics and their optimizers."""

    def update(
        self, scored: Sequence[ScoredRollout], *, iteration: int, multiplier: float, kl_coef: float
    ) -> UpdateMetrics:
        """All epochs and minibatches of one iteration, up to the first that is not finite."""

    def publish(self, version: int, *, averaged: bool = False) -> Weights:
        """Hand the current policy to the transport under this version.

        Args: averaged: the average of its weights in place of the last ones, where one is kept.
        """

    def save(self, folder: Path) -> None:
        """Write everything that `load` needs to continue bit by bit."""

    def load(self, folder: Path) -> None: ...

    def export(self, folder: Path, *, averaged: bool = False) -> None:
        """Write the policy, or its average, as a plain Hugging Face folder, tokenizer included."""

    def restart(self) -> None:
        """Make the group anew after a rank was lost; `load` must follow."""


class MetricSink(Protocol):
    """Where the numbers of an iteration go; names are rows of `equilibrate.run.metrics.METRICS`."""

    def write(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def write_seconds(self, iteration: int, seconds: Mapping[str, float]) -> None:
        """Wall-clock figures, kept apart because they differ from run to run."""

    def offset(self) -> int:
        """Bytes of the truth file so far; a checkpoint remembers it."""

    def rewind(self, offset: int) -> None:
        """Forget what was written after `offset`: a resumed run writes it again."""

    def close(self) -> None: ...
