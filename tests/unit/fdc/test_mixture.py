from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.errors import DataError
from equilibrate.fdc.mixture import (
    Apportionment,
    choose_amounts,
    normalise,
)
from equilibrate.types import Category

mixtures = st.dictionaries(
    st.sampled_from(list(Category)), st.floats(1e-3, 1e6), min_size=1, max_size=5
)


def test_counts_ratios_and_shares_mean_the_same() -> None:
    counts = normalise({Category.EHD: 10_000, Category.IHD: 3_000, Category.MHD: 1_000})
    assert counts == normalise({Category.EHD: 10, Category.IHD: 3, Category.MHD: 1})
    assert counts[Category.EHD] == pytest.approx(10 / 14)


def test_classes_at_zero_are_left_out() -> None:
    assert normalise({Category.EHD: 0.0, Category.GENERAL: 2.0}) == {Category.GENERAL: 1.0}


@pytest.mark.parametrize("weights", [(), (0.0,), (-1.0, 3.0), (math.nan,), (math.inf,)])
def test_impossible_mixtures_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match=r"fdc\.mixture .* at least one above 0; try"):
        normalise(dict(zip(Category, weights, strict=False)))


@given(mixtures, st.integers(1, 400))
def test_every_class_stays_within_one_of_its_ideal(
    mixture: dict[Category, float], total: int
) -> None:
    shares = normalise(mixture)
    apportionment = Apportionment()
    counts = dict.fromkeys(shares, 0)
    for drawn in range(1, total + 1):
        counts[apportionment.next_class(shares)] += 1
        for category, share in shares.items():
            assert abs(counts[category] - share * drawn) < 1


def test_hand_computed_order() -> None:
    # Shares 3/4 and 1/4, slack 1/2: after prompts 1 to 4 GENERAL is owed .75, .5, .25, 1 and EHD
    # .25, .5, .75, 0. At 2 both are ready and GENERAL is due first (0/.75 against 0/.25 ties: the
    # first listed goes).
    apportionment = Apportionment()
    shares = {Category.GENERAL: 0.75, Category.EHD: 0.25}
    assert [apportionment.next_class(shares) for _ in range(8)] == [
        Category.GENERAL,
        Category.GENERAL,
        Category.EHD,
        Category.GENERAL,
    ] * 2


def test_one_class_gets_everything() -> None:
    apportionment = Apportionment()
    assert {apportionment.next_class({Category.EHD: 1.0}) for _ in range(3)} == {Category.EHD}


CATEGORIES = [Category.EHD] * 5 + [Category.GENERAL] * 3


def choose(amounts, **changes):
    return choose_amounts(CATEGORIES, amounts, **({"when_short": "error", "seed": 1} | changes))


def test_no_amounts_take_everything():
    assert choose({}) == list(range(8))


def test_each_class_gives_what_is_asked_for_and_no_row_twice():
    chosen = choose({Category.EHD: 4, Category.GENERAL: 3})
    # In the order of the classes, however the amounts were written: they have one key.
    assert chosen == choose({Category.GENERAL: 3, Category.EHD: 4})
    assert [CATEGORIES[row] for row in chosen] == [Category.GENERAL] * 3 + [Category.EHD] * 4
    assert len(set(chosen)) == 7


def test_a_class_that_is_not_named_gives_none():
    assert {CATEGORIES[row] for row in choose({Category.EHD: 5})} == {Category.EHD}


def test_a_smaller_amount_is_a_part_of_a_larger_one():
    assert set(choose({Category.EHD: 2})) < set(choose({Category.EHD: 4}))


def test_the_seed_decides():
    assert len({tuple(choose({Category.EHD: 3}, seed=seed)) for seed in range(10)}) > 1


def test_too_few_examples_are_refused():
    with pytest.raises(DataError, match=r"EHD \(6\) must be at most the 5 examples"):
        choose({Category.EHD: 6})


def test_or_gone_through_again():
    chosen = choose({Category.EHD: 12}, when_short="oversample")
    assert sorted(map(chosen.count, range(5))) == [2, 2, 2, 3, 3]


def test_a_class_without_examples_cannot_be_gone_through_again():
    with pytest.raises(DataError, match=r"IHD \(1\)"):
        choose({Category.IHD: 1}, when_short="oversample")
