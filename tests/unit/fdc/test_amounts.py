from __future__ import annotations

import pytest

from equilibrate.errors import DataError
from equilibrate.fdc.amounts import choose_amounts
from equilibrate.types import Category

CATEGORIES = [Category.EHD] * 5 + [Category.GENERAL] * 3


def choose(amounts, **changes):
    return choose_amounts(CATEGORIES, amounts, **({"when_short": "error", "seed": 1} | changes))


def test_no_amounts_take_everything():
    assert choose({}) == list(range(8))


def test_each_class_gives_what_is_asked_for_and_no_row_twice():
    chosen = choose({Category.EHD: 4, Category.GENERAL: 3})
    assert [CATEGORIES[row] for row in chosen] == [Category.EHD] * 4 + [Category.GENERAL] * 3
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
