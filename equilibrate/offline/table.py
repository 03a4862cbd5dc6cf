"""Labelled answers as arrays: tokenized once, scored once, read by every rank of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from equilibrate.data.answers import Answer
from equilibrate.data.rows import CHARACTERS_PER_TOKEN
from equilibrate.data.sequences import Sequences, sequences_of
from equilibrate.errors import DataError
from equilibrate.text.renderer import Renderer
from equilibrate.types import (
    Category,
    FinishReason,
    FloatArray,
    Rollout,
    ScoredRollout,
    TokenIds,
    is_unsafe,
)

Rows = NDArray[np.int64]

ANSWERS_FILE = "answers.safetensors"
SCORES = ("token_rewards", "token_costs", "ref_log_probs")
ROW_FIELDS = ("learn_starts", "targets", "sides", "is_safe", "categories")
"""One number an answer."""
OWN_TOKEN = -1
"""In place of a target: the token itself is to be learned."""
SCORED_TOGETHER = 4096
"""Answers that one call of the scorer takes: a data set of any size passes through in parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedAnswers:
    """Some answers of a table, right-padded to [B, T]."""

    token_ids: Tensor
    targets: Tensor
    """[B, T] int64, what each token is taught to be."""
    response_mask: Tensor
    """[B, T] bool, True on the tokens to learn from."""
    ref_log_probs: Tensor
    token_rewards: Tensor
    token_costs: Tensor
    sides: Tensor
    is_safe: Tensor
    may_be_masked: Tensor


@dataclass(frozen=True, kw_only=True)
class AnswerTable:
    """R answers; those of one example follow one another."""

    sequences: Sequences
    learn_starts: Rows
    """[R], position of the first token to learn from."""
    targets: Rows
    """[R], the token that a whole answer is taught, or OWN_TOKEN."""
    sides: Rows
    is_safe: NDArray[np.bool_]
    categories: Rows
    """[R], numbers of the classes in the order of `Category`."""
    answers_per_example: int
    num_alone: int = 0
    """The last so many answers are examples of one answer each, whatever `answers_per_example`."""
    num_left_out: int = 0
    """Answers that were left out with their examples, because one had no room."""
    scores: dict[str, FloatArray]
    """token_rewards, token_costs, ref_log_probs, one number per token, laid out as the tokens;
    empty where nothing asks for them."""

    def __len__(self) -> int:
        """Examples."""
        return self.num_groups + self.num_alone

    @property
    def num_groups(self) -> int:
        """Examples of `answers_per_example` answers, which come first."""
        return (len(self.sides) - self.num_alone) // self.answers_per_example

    def are_pairs(self, examples: Rows) -> NDArray[np.bool_]:
        in_groups: NDArray[np.bool_] = examples < self.num_groups
        return in_groups & (self.answers_per_example == 2)

    def first_rows(self, examples: Rows) -> Rows:
        """Number of the first answer of each example."""
        alone = np.maximum(examples - self.num_groups, 0)
        first: Rows = (examples - alone) * self.answers_per_example + alone
        return first

    @cached_property
    def example_lengths(self) -> Rows:
        """Padded tokens that each example takes: its longest answer, for every answer.

        One that stands alone counts as a pair of its length: beside pairs it is padded with them,
        and pairs must not be padded to an answer twice as long.
        """
        longest: Rows = np.maximum.reduceat(self.sequences.lengths, self._starts)
        return longest * self.answers_per_example

    @property
    def _starts(self) -> Rows:
        return self.first_rows(np.arange(len(self)))

    def split(self, held_out_fraction: float, seed: int) -> tuple[Rows, Rows]:
        """Numbers of the examples to learn from, and of those to measure by.

        All examples of a prompt are on one side: a scorer could know a prompt that it has seen.
        Raises: DataError where there is no prompt for both.
        """
        if not held_out_fraction:
            return np.arange(len(self)), np.arange(0)
        numbers: dict[bytes, int] = {}
        prompts = np.array(
            [numbers.setdefault(ids.tobytes(), len(numbers)) for ids in self._prompts()]
        )
        if len(numbers) < 2:
            raise DataError(
                f"{len(numbers)} prompt is too few: some are held out for calibration; give 2"
            )
        num_held_out = min(max(1, round(len(numbers) * held_out_fraction)), len(numbers) - 1)
        drawn = np.random.default_rng(seed).permutation(len(numbers))[:num_held_out]
        is_held_out = np.isin(prompts, drawn)
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)

    def _prompts(self) -> Iterator[TokenIds]:
        """Token ids of the prompt of each example."""
        for row in self._starts:
            start, end = self.sequences.starts[row], self.sequences.starts[row + 1]
            yield self.sequences.flat[start:end][: self.sequences.prompt_lengths[row]]

    def comparable(self) -> AnswerTable:
        """Without the examples of which an answer has no room, or whose two answers are the same
        tokens: nothing can be learned from them, and a scorer would be measured by them."""
        has_room = self.learn_starts < self.sequences.lengths
        have_room = np.logical_and.reduceat(has_room, self._starts)
        kept = np.flatnonzero(have_room & ~self._are_equal())
        rows = self.rows_of(kept)
        num_alone = int((kept >= self.num_groups).sum())
        # What is left of one kind is a table of that kind, as if there had been no other.
        is_alone = num_alone == len(kept)
        return replace(
            self,
            sequences=self.sequences.take(rows),
            **{name: getattr(self, name)[rows] for name in ROW_FIELDS},
            answers_per_example=1 if is_alone else self.answers_per_example,
            num_alone=0 if is_alone else num_alone,
            num_left_out=len(self.sides) - len(rows),
        )

    def _are_equal(self) -> NDArray[np.bool_]:
        """[E], whether the two answers of an example are the same tokens; False of one."""
        are_equal = self.are_pairs(np.arange(len(self)))
        rows = np.split(self.sequences.flat, self.sequences.starts[1:-1])
        for pair in np.flatnonzero(are_equal):
            are_equal[pair] = np.array_equal(rows[2 * pair], rows[2 * pair + 1])
        return are_equal

    @property
    def classes(self) -> set[Category]:
        """Of all its answers."""
        return {list(Category)[number] for number in np.unique(self.categories)}

    @property
    def shares(self) -> dict[Category, float]:
        """Share of each class among its answers; a class without any has none."""
        numbers, counts = np.unique(self.categories, return_counts=True)
        return {
            list(Category)[number]: float(count) / len(self.categories)
            for number, count in zip(numbers, counts, strict=True)
        }

    def rows_of(self, examples: Rows) -> Rows:
        """Numbers of the answers of some examples, in order."""
        answers = np.arange(self.answers_per_example)
        is_there = (examples < self.num_groups)[:, None] | (answers == 0)
        rows: Rows = (self.first_rows(examples)[:, None] + answers)[is_there]
        return rows

    def may_be_masked(self, rows: Rows, ungated: Sequence[Category]) -> NDArray[np.bool_]:
        """Whether each of some answers is of a class that a mask touches."""
        free = [list(Category).index(category) for category in ungated]
        return ~np.isin(self.categories[rows], free)

    def padded(self, rows: Rows, *, ungated: Sequence[Category] = ()) -> PaddedAnswers:
        """Args: ungated: classes that no mask touches."""
        token_ids, mask = self.sequences.padded(rows)
        positions = torch.arange(token_ids.shape[1])[None]
        targets = torch.from_numpy(self.targets[rows])[:, None]
        nothing = np.zeros(1, np.float32)
        scores = {
            name: self.sequences.padded_values(self.scores[name], rows)
            if name in self.scores
            else torch.from_numpy(nothing).expand(token_ids.shape)
            for name in SCORES
        }
        return PaddedAnswers(
            token_ids=token_ids,
            targets=torch.where(targets == OWN_TOKEN, token_ids, targets),
            response_mask=mask & (positions >= torch.from_numpy(self.learn_starts[rows])[:, None]),
            sides=torch.from_numpy(self.sides[rows]).float(),
            is_safe=torch.from_numpy(self.is_safe[rows]),
            may_be_masked=torch.from_numpy(self.may_be_masked(rows, ungated)),
            **scores,
        )

    def scored(self, score: Callable[[Sequence[Rollout]], list[ScoredRollout]]) -> AnswerTable:
        """The same answers with what the scorer says of every token."""
        found: dict[str, list[FloatArray]] = {name: [] for name in SCORES}
        for start in range(0, len(self.sides), SCORED_TOGETHER):
            stop = min(start + SCORED_TOGETHER, len(self.sides))
            for answer in score(list(self._rollouts(start, stop))):
                for name, parts in found.items():
                    parts.append(getattr(answer, name))
        scores = {name: np.concatenate(parts) for name, parts in found.items()}
        bad = [name for name, values in scores.items() if not np.isfinite(values).all()]
        if bad:
            raise DataError(
                f"{bad[0]} of the answers must be finite; check the model that gives them"
            )
        return replace(self, scores=scores)

    def _rollouts(self, start: int, stop: int) -> Iterator[Rollout]:
        """Answers in the form that scorers take: as if somebody had sampled them."""
        categories = list(Category)
        for row in range(start, stop):
            first, end = self.sequences.starts[row], self.sequences.starts[row + 1]
            token_ids = self.sequences.flat[first:end]
            yield Rollout(
                prompt_id=str(row),
                copy=0,
                category=categories[self.categories[row]],
                policy_version=0,
                token_ids=token_ids,
                response_mask=np.arange(len(token_ids)) >= self.sequences.prompt_lengths[row],
                rollout_log_probs=np.zeros(len(token_ids), np.float32),
                finish_reason=FinishReason.STOP,
            )

    def save(self, folder: Path) -> None:
        arrays = {
            "flat": self.sequences.flat,
            "starts": self.sequences.starts,
            "prompt_lengths": self.sequences.prompt_lengths,
            **{name: getattr(self, name) for name in ROW_FIELDS},
            "answers_per_example": np.array(self.answers_per_example),
            "num_alone": np.array(self.num_alone),
        }
        save_file(arrays | self.scores, folder / ANSWERS_FILE)


def load_answers(folder: Path) -> AnswerTable:
    """What `AnswerTable.save` wrote."""
    arrays = load_file(folder / ANSWERS_FILE)
    sequences = Sequences(*(arrays.pop(name) for name in ("flat", "starts", "prompt_lengths")))
    columns: dict[str, Any] = {name: arrays.pop(name) for name in ROW_FIELDS}
    return AnswerTable(
        sequences=sequences,
        **columns,
        answers_per_example=int(arrays.pop("answers_per_example")),
        # Earlier versions did not write it: none stood beside pairs.
        num_alone=int(arrays.pop("num_alone", 0)),
        scores=arrays,
    )


def encode_answers(
    renderer: Renderer,
    answers: Sequence[Answer],
    *,
    answers_per_example: int,
    num_alone: int = 0,
    max_length: int,
) -> AnswerTable:
    """Prompt, given part, response and its end as sampling would leave them; cut to `max_length`.

    Where all tokens are taught one target there is no end: it would be one token more to teach.
    Args: answers_per_example, num_alone: as of `AnswerTable`.
    Raises: DataError if a target is no token of the tokenizer, or no example is left.
    """
    # What lies beyond is cut off in any case, and a text of 10 MB takes 20 s.
    longest = CHARACTERS_PER_TOKEN * max_length
    encoded = renderer.answers(
        [answer.prompt[:longest] for answer in answers],
        [answer.response[:longest] for answer in answers],
        given=(answer.given[:longest] for answer in answers),
        has_end=(not answer.target and len(answer.response) <= longest for answer in answers),
    )
    targets = {text: _target(renderer, text) for text in {answer.target for answer in answers}}
    categories = {category: number for number, category in enumerate(Category)}
    table = AnswerTable(
        sequences=sequences_of(encoded, max_length=max_length),
        learn_starts=np.array([row.learn_start for row in encoded]),
        targets=np.array([targets[answer.target] for answer in answers]),
        sides=np.array([answer.side for answer in answers]),
        is_safe=np.array([answer.is_safe for answer in answers]),
        categories=np.array([categories[answer.category] for answer in answers]),
        answers_per_example=answers_per_example,
        num_alone=num_alone,
        scores={},
    )
    comparable = table.comparable()
    if not len(comparable):
        raise DataError(
            "every example has an answer for which its prompt leaves no room within max_length "
            f"({max_length} tokens), or the same tokens twice; raise it, or look at the answers"
        )
    return comparable


def _target(renderer: Renderer, text: str) -> int:
    """The token that an answer of this text begins with; OWN_TOKEN for none."""
    if not text:
        return OWN_TOKEN
    (answer,) = renderer.answers([text], [text], has_end=[False])
    first = answer.token_ids[answer.learn_start :][:1]
    if first in ([], [renderer.tokenizer.unk_token_id]):
        raise DataError(
            f"objective.refusal ({text!r}) must begin with a token that the "
            "tokenizer knows; take the first word of the policy's own refusals"
        )
    return first[0]


def table_of_pairs(
    pairs: Sequence[tuple[ScoredRollout, ScoredRollout]], *, with_worst: bool
) -> AnswerTable:
    """Sampled answers with their scores: the better one of each pair, then the worse if asked for.

    Raises: DataError if there is no pair.
    """
    if not pairs:
        raise DataError(
            "no prompt has two different answers to compare; raise objective.copies or "
            "rollout.temperature"
        )
    per_example = 2 if with_worst else 1
    answers = [answer for pair in pairs for answer in pair[:per_example]]
    rollouts = [answer.rollout for answer in answers]
    categories = {category: number for number, category in enumerate(Category)}
    starts = np.concatenate([[0], np.cumsum([len(r.token_ids) for r in rollouts])])
    # The prompt ends where the response begins.
    prompt_lengths = np.array([int(r.response_mask.argmax()) for r in rollouts])
    return AnswerTable(
        sequences=Sequences(
            np.concatenate([r.token_ids for r in rollouts]),
            starts.astype(np.int64),
            prompt_lengths,
        ),
        learn_starts=prompt_lengths,
        targets=np.full(len(rollouts), OWN_TOKEN),
        sides=np.array([1, -1][:per_example] * len(pairs)),
        is_safe=np.array([not is_unsafe(answer.cost) for answer in answers]),
        categories=np.array([categories[r.category] for r in rollouts]),
        answers_per_example=per_example,
        scores={
            name: np.concatenate([getattr(answer, name) for answer in answers]) for name in SCORES
        },
    )
