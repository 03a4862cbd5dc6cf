"""Where a row may end, inside a peer's generation."""

import math

import torch

from benchmarks.against.row_lengths import RowLengths

PAD, EOS = 0, 3


def next_scores(processor: RowLengths, width: int) -> torch.Tensor:
    return processor(torch.zeros(2, width, dtype=torch.long), torch.ones(2, 5))


def test_a_row_ends_at_its_length_and_nowhere_else() -> None:
    # Prompts of 4 tokens; row 0 has 2 tokens, row 1 the longest, 3.
    processor = RowLengths([2, 3], prompt_tokens=4, longest=3, eos=EOS, pad=PAD)
    free = [-math.inf, 1.0, 1.0, -math.inf, 1.0]
    ended = [-math.inf, -math.inf, -math.inf, 0.0, -math.inf]
    assert next_scores(processor, 4).tolist() == [free, free]
    assert next_scores(processor, 5).tolist() == [ended, free]
    # The longest row is cut off by the trainer, not by an end token.
    assert next_scores(processor, 6).tolist() == [free, free]
