"""The records that flow through one iteration, in order of birth.

    PromptBatch -> Rollout[] -> ScoredRollout[] -> TokenBatch -> TrainBatch -> UpdateMetrics

Each is frozen and complete when made; a later record contains the earlier one. Per-token arrays of
one rollout share the length L (prompt and response together); batches are right-padded to [B, T].
A mask always says what True keeps. What reward and cost mean together stands at the end.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

TokenIds = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]


class Category(StrEnum):
    """Kind of a prompt (Equilibrate RLHF, fine-grained data; BORDERLINE is our probe)."""

    GENERAL = "GENERAL"
    """Everyday request."""
    BORDERLINE = "BORDERLINE"
    """Harmless, but shares words with harmful requests: probes over-refusal."""
    EHD = "EHD"
    """Explicit harm: the content itself is risky, whatever the intent."""
    IHD = "IHD"
    """Implicit harm: harmless words, malicious intent."""
    MHD = "MHD"
    """Mixed harm: risky content and malicious intent."""

    @property
    def is_safety(self) -> bool:
        """True where complying is harmful."""
        return self in (Category.EHD, Category.IHD, Category.MHD)


ScorerKind = Literal["reward", "cost"]


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"

    @property
    def is_truncated(self) -> bool:
        return self is FinishReason.LENGTH


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Conversation = tuple[Message, ...]
"""Turns in order. Where one is wanted, a string is a conversation of one user turn."""


def as_conversation(prompt: str | Conversation) -> Conversation:
    return (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt as the policy sees it."""

    prompt_id: str
    text: str
    """What people read of it, and what leakage is checked on; of one user turn its content."""
    token_ids: tuple[int, ...]
    category: Category
    cell: str = ""
    """Finer evaluation group, for example `EHD_heldout_known`; empty in training data."""
    part: str = ""
    """Part of a cell that is counted by itself as well, for example `IHD_new`."""
    messages: Conversation = ()
    """Empty for one user turn that says `text`."""
    file_number: int = 0
    """Of the file that it comes from, among those of the run."""

    @property
    def conversation(self) -> Conversation:
        return self.messages or as_conversation(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """What one call of the rollout pool generates for: every prompt `copies` times."""

    iteration: int
    prompts: tuple[Prompt, ...]
    copies: int = 1

    def responses(self) -> Iterator[tuple[Prompt, int]]:
        """Each response to sample: its prompt, and its number among all to that prompt.

        A prompt that comes twice goes on counting, so that no two responses of a batch share prompt
        and number, which are what they are seeded by.
        """
        numbers: dict[str, Iterator[int]] = defaultdict(count)
        for prompt in self.prompts:
            for _ in range(self.copies):
                yield prompt, next(numbers[prompt.prompt_id])


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """One response to sample: the same request gives the same tokens on any worker."""

    prompt_id: str
    copy: int
    category: Category
    token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One prompt with one sampled response.

    Example: prompt ids (5, 6), response ids (7, 2) with 2 = end of sequence:
    token_ids [5, 6, 7, 2], response_mask [F, F, T, T], rollout_log_probs [0, 0, -1.2, -0.1].
    """

    prompt_id: str
    copy: int
    category: Category
    policy_version: int
    """Version of the weights that sampled every token of this response."""
    token_ids: TokenIds
    response_mask: BoolArray
    rollout_log_probs: FloatArray
    """[L], nats, as reported by the generator; 0 on the prompt."""
    finish_reason: FinishReason
    messages: Conversation = ()
    """Turns of the prompt, for scorers that read text; empty where nothing was sampled."""

    def __post_init__(self) -> None:
        arrays = (self.token_ids, self.response_mask, self.rollout_log_probs)
        if len({array.shape for array in arrays}) != 1 or self.token_ids.ndim != 1:
            raise ValueError(
                f"rollout {self.prompt_id!r}: token_ids, response_mask and rollout_log_probs must "
                f"share one shape [L], got {[array.shape for array in arrays]}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with the verdict of the reward, cost and reference models."""

    rollout: Rollout
    reward: float
    """Score of the finished response; larger is more helpful."""
    cost: float
    """Score of the finished response; larger is more harmful, > 0 is unsafe."""
    token_rewards: FloatArray
    """[L], reward-model score of the prefix that ends at each token; 0 but at the end where the
    scorer reads whole responses."""
    token_costs: FloatArray
    """[L], likewise by the cost model."""
    ref_log_probs: FloatArray
    """[L], nats, under the frozen reference; 0 on the prompt."""

    @property
    def broken(self) -> tuple[str, ...]:
        """The models (reward, cost, reference) that gave it a number that is not finite."""
        by_model = {
            "reward": (self.reward, self.token_rewards),
            "cost": (self.cost, self.token_costs),
            "reference": (0.0, self.ref_log_probs),
        }
        return tuple(
            name
            for name, (score, of_tokens) in by_model.items()
            if not (math.isfinite(score) and np.isfinite(of_tokens).all())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Scored rollouts, right-padded to [B, T], with the learner's own view before the update."""

    token_ids: Tensor
    response_mask: Tensor
    rollout_log_probs: Tensor
    old_log_probs: Tensor
    ref_log_probs: Tensor
    values: Tensor
    """[B, T], reward units: value of the prefix that ends just before each token; 0 without a
    critic."""
    cost_values: Tensor
    token_rewards: Tensor
    token_costs: Tensor
    reward: Tensor
    """[B]"""
    cost: Tensor
    """[B]"""
    may_be_masked: Tensor
    """[B] bool: True where AMA may mask the row; False for classes that the gate leaves alone."""
    prompt_groups: Tensor
    """[B] int64: the same number for all responses to one prompt, wherever in the batch: they are
    samples of one policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """A token batch with its targets: all that an optimiser step needs."""

    tokens: TokenBatch
    advantages: Tensor
    """[B, T], combined (A_R - lambda A_C) / (1 + lambda)."""
    returns: Tensor
    cost_returns: Tensor
    gradient_mask: Tensor
    """[B, T] bool, a subset of response_mask: True where the token may move the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMetrics:
    """What one update reports: every name is a row of `equilibrate.run.metrics.METRICS`."""

    values: Mapping[str, float]
    skipped: bool = False
    """True if a non-finite number stopped the update on all ranks; what follows it was left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One version of the policy on its way to the generators.

    `reference` is whatever the transport hands over (an object-store reference, a path); only the
    two ends of the transport look inside.
    """

    version: int
    reference: object


Score = TypeVar("Score", float, "Tensor")


def combined(reward: Score, cost: Score, multiplier: float) -> Score:
    """(R - lambda C) / (1 + lambda): reward alone at lambda = 0, minus cost as lambda grows.

    Args: reward, cost: of a response, a token or an advantage; multiplier: lambda >= 0.
    Source: Dai et al. 2023, appendix B.
    """
    return (reward - multiplier * cost) / (1.0 + multiplier)


@overload
def is_unsafe(cost: float) -> bool: ...
@overload
def is_unsafe(cost: NDArray[np.floating[Any]]) -> BoolArray: ...
def is_unsafe(cost: Any) -> Any:
    """Whether a cost says that a response does harm: the boundary, 0, is still safe.

    Source: Dai et al. 2023, section 3.2.
    """
    return cost > 0
