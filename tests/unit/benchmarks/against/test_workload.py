"""Lengths and prompts that all systems get alike."""

import math
from itertools import chain
from statistics import fmean

import pytest
import torch

from benchmarks.against.row_lengths import RowLengths
from benchmarks.against.workload import Setting, cut_words, draw_lengths, mean_limits
from benchmarks.limits import ModelShape, Roof


def make_setting(lengths: str, rollouts: int = 256) -> Setting:
    return Setting(dtype="float32", lengths=lengths, longest=200, rollouts=rollouts)


def test_fixed_lengths_are_all_the_longest() -> None:
    assert draw_lengths(make_setting("fixed", 3), 2) == [[200] * 3] * 2


def test_ragged_lengths_have_the_stated_mean_and_bounds() -> None:
    rows = draw_lengths(make_setting("ragged"), 40)
    assert [len(row) for row in rows] == [256] * 40
    lengths = list(chain.from_iterable(rows))
    # 10240 draws with a deviation of 40 sqrt(exp(0.36) - 1) = 26: the mean is known to 0.3.
    assert fmean(lengths) == pytest.approx(40, abs=1)
    assert min(lengths) >= 1
    assert 150 < max(lengths) <= 200
    # Longer than twice the mean: log 2 + 0.18 = 0.87 = 1.46 deviations of 0.6, 7.3 %.
    assert fmean(length > 80 for length in lengths) == pytest.approx(0.073, abs=0.01)


def test_every_system_draws_the_same_and_every_iteration_anew() -> None:
    first, second = (draw_lengths(make_setting("ragged"), 2) for _ in range(2))
    assert first == second
    assert first[0] != first[1]


def test_words_are_cut_into_texts_of_one_size() -> None:
    assert list(cut_words(["a", "b", "c", "d", "e"], 2)) == ["a b", "c d"]


@pytest.mark.parametrize(
    ("scorers", "critics", "passes"),
    # 2 N D a forward pass, 6 N D a training: without a critic (2 + 1) x 2 + 6.
    [(1, 1, 20), (2, 2, 30), (1, 0, 12)],
)
def test_limit_of_an_iteration(scorers: int, critics: int, passes: int) -> None:
    shape = ModelShape(
        num_parameters=100, num_layers=1, hidden_size=4, intermediate_size=8, kv_width=2
    )
    roof = Roof(flops_per_second=1000.0, bytes_per_second=1e12)
    # One response of 2 tokens after 16: prefill 2 x 100 x 16 / 1000 = 3.2 s, one more step 0.2 s,
    # then all passes over 18 tokens; memory is as good as free.
    expected = 3.2 + 0.2 + passes * 100 * 18 / 1000
    work = {"scorers": scorers, "critics": critics, "epochs": 1}
    found = mean_limits(shape, roof, [[2]], **work)
    assert sum(found.values()) == pytest.approx(expected)
    # A single step asks each model once less: 2 N D.
    saved = 2 * (1 + critics) * 100 * 18 / 1000
    once = mean_limits(shape, roof, [[2]], **work, is_only_step=True)
    assert once == {**found, "update": pytest.approx(found["update"] - saved)}


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
