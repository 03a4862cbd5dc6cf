"""What a loss sees of a batch of labelled answers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SideCounts:
    """Tokens of one side in the global batch."""

    tokens: int
    learned: int
    """What a masked loss is divided by: those that the mask keeps, or all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerBatch:
    """One rank's part of a batch of B answers; the answers to one example follow one another."""

    log_probs: Tensor
    """[B, T], nats, of the target of each token."""
    log_ratios: Tensor
    """[B], nats, from `masked_log_ratios`; 0 for an objective without a reference."""
    response_mask: Tensor
    """[B, T] bool, True on tokens to learn from."""
    gradient_mask: Tensor
    """[B, T] bool, a subset of it: True where the token may move the policy."""
    sides: Tensor
    """[B], +1 or -1."""
    is_safe: Tensor
    """[B] bool."""
    is_used: Tensor
    """[B] bool, False for the answers of an example that is left out."""
    num_examples: int
    """Used ones, in the global batch."""
    positive: SideCounts
    negative: SideCounts

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Log-ratios [P] of the chosen and the rejected answer of every used pair."""
        used = self.log_ratios[self.is_used]
        return used[0::2], used[1::2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPairs:
    """One rank's part of a batch of P scored pairs: the first answer is to score higher."""

    high: Tensor
    """[P, T], score of each prefix, held after the end."""
    low: Tensor
    span: Tensor
    """[P, T] bool, where the two are compared."""
    high_signs: Tensor
    """[P], +1 unsafe, -1 safe."""
    low_signs: Tensor
    num_examples: int
    """In the global batch: pairs, and single answers where it holds both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAnswers:
    """One rank's part of a batch of A answers, each labelled by itself."""

    scores: Tensor
    """[A, T], score of each prefix, held after the end."""
    span: Tensor
    """[A, T] bool, the tokens of the answer."""
    signs: Tensor
    """[A], +1 unsafe, -1 safe."""
    num_examples: int
    """In the global batch: answers, and pairs where it holds both."""
