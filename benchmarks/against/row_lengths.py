"""Makes `generate` of transformers end every row at its drawn length, inside a peer's trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from benchmarks.against.job import Job
from benchmarks.against.turns import Turns


class RowLengths:
    """A logits processor: no end token before a row's last token, nothing else as its last one.

    Padding is never sampled, because trainers tell padding by its token. A row of the greatest
    length is cut off by `max_new_tokens` instead: with equal lengths no end token is seen at all.
    """

    def __init__(
        self, lengths: Sequence[int], *, prompt_tokens: int, longest: int, eos: int, pad: int
    ) -> None:
        self._ending: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            if length < longest:
                self._ending.setdefault(prompt_tokens + length - 1, []).append(row)
        self._eos, self._never = eos, sorted({eos, pad})

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Args: input_ids [B, T], scores [B, V] of the next token, changed in place."""
        scores[:, self._never] = -math.inf
        if rows := self._ending.get(input_ids.shape[1]):
            scores[rows] = -math.inf
            scores[rows, self._eos] = 0.0
        return scores


def impose_lengths(model: Any, job: Job, turns: Turns, *, eos: int, pad: int) -> None:
    """Replace `model.generate`; rows take the job's lengths in the order in which they come."""
    from transformers import LogitsProcessorList

    generate: Callable[..., Any] = model.generate
    lengths = chain.from_iterable(job.lengths)

    def generate_rows(*args: Any, **options: Any) -> Any:
        input_ids = options["input_ids"] if "input_ids" in options else args[0]
        rows, width = input_ids.shape
        if width != job.prompt_tokens:
            raise ValueError(f"prompts have {width} tokens, not {job.prompt_tokens}")
        processor = RowLengths(
            [next(lengths) for _ in range(rows)],
            prompt_tokens=width,
            longest=job.longest,
            eos=eos,
            pad=pad,
        )
        options["logits_processor"] = LogitsProcessorList([processor])
        output = generate(*args, **options)
        responses = getattr(output, "sequences", output)[:, width:]
        is_end = responses == eos
        turns.add_tokens(int((is_end.cumsum(1) - is_end.int() == 0).sum()))
        return output

    model.generate = generate_rows
