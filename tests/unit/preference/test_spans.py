import math

import pytest
import torch

from equilibrate.preference.spans import (
    comparison_span,
    end_scores,
    hold_end_scores,
)

SCORES = torch.tensor([[1.0, 2.0, 3.0, 99.0], [4.0, 5.0, 6.0, 7.0]])
MASK = torch.tensor([[True, True, True, False], [True, True, True, True]])


def ids(*rows):
    return torch.tensor(rows)


def lengths(*counts, width=5):
    return torch.arange(width)[None] < torch.tensor(counts)[:, None]


def test_end_score_is_at_the_last_real_token():
    assert end_scores(SCORES, MASK).tolist() == [3.0, 7.0]


def test_more_padding_changes_no_end_score():
    padded = torch.nn.functional.pad(SCORES, (0, 3), value=math.nan)
    mask = torch.nn.functional.pad(MASK, (0, 3))
    assert torch.equal(end_scores(padded, mask), end_scores(SCORES, MASK))


def test_scores_are_held_after_the_end():
    assert hold_end_scores(SCORES, MASK).tolist() == [[1, 2, 3, 3], [4, 5, 6, 7]]


def test_held_padding_has_no_gradient_and_the_end_has_it_twice():
    scores = torch.where(MASK, SCORES, math.nan).requires_grad_()
    hold_end_scores(scores, MASK).sum().backward()
    assert scores.grad.tolist() == [[1, 1, 2, 0], [1, 1, 1, 1]]


def test_span_runs_from_the_first_difference_to_the_later_end():
    first = ids([1, 2, 3, 4, 0], [1, 5, 6, 0, 0])
    second = ids([1, 2, 9, 0, 0], [1, 5, 6, 7, 8])
    span = comparison_span(first, second, lengths(4, 3), lengths(3, 5))
    assert span.tolist() == [
        [False, False, True, True, False],  # differ at 2, later end at 3
        [False, False, False, True, True],  # the first is a prefix of the second
    ]


def test_tokens_that_agree_again_stay_in_the_span():
    span = comparison_span(ids([1, 2, 3, 4, 5]), ids([1, 9, 3, 4, 5]), lengths(5), lengths(5))
    assert span.tolist() == [[False, True, True, True, True]]


def test_padding_ids_do_not_matter():
    span = comparison_span(ids([1, 2, 0, 0, 0]), ids([1, 2, 7, 7, 7]), lengths(2), lengths(2))
    assert not span.any()


def test_an_end_token_that_is_also_the_padding_counts():
    span = comparison_span(ids([1, 2, 0, 0, 0]), ids([1, 2, 0, 0, 0]), lengths(2), lengths(3))
    assert span.tolist() == [[False, False, True, False, False]]


def test_shapes_are_checked():
    for call in (
        lambda: end_scores(SCORES, MASK[:1]),
        lambda: hold_end_scores(SCORES, MASK[:1]),
        lambda: comparison_span(ids([1]), ids([1, 2]), lengths(1, width=1), lengths(2, width=2)),
    ):
        with pytest.raises(ValueError, match="shapes must be equal"):
            call()
