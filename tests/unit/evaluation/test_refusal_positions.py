from __future__ import annotations

import pytest

from equilibrate.errors import DataError
from equilibrate.evaluation.refusal_positions import RefusalPosition, refusal_histogram
from equilibrate.evaluation.statistics import wilson_interval


@pytest.mark.parametrize(
    ("words_before", "position"),
    [(0, "start"), (1, "1-5"), (5, "1-5"), (6, "6-30"), (30, "6-30"), (31, "later")],
)
def test_the_bins_meet_without_a_gap(words_before, position):
    assert RefusalPosition.of("step " * words_before + "I cannot go on.") == position


def test_a_refusal_counts_however_late_it_begins():
    # 1000 words are far beyond the opening that `RefusalMatcher` reads.
    assert RefusalPosition.of("step " * 1000 + "I must refuse.") == "later"
    assert RefusalPosition.of("step " * 1000) == "none"


def test_histogram_by_hand():
    responses = ["I can't.", "I won't.", "Sure, but I refuse.", "First boil it.", ""]
    assert refusal_histogram(responses) == {
        "none": wilson_interval(2, 5),
        "start": wilson_interval(2, 5),
        "1-5": wilson_interval(1, 5),
        "6-30": wilson_interval(0, 5),
        "later": wilson_interval(0, 5),
    }


def test_no_answers_are_refused():
    with pytest.raises(DataError, match="at least one"):
        refusal_histogram([])
