from __future__ import annotations

import pytest

from equilibrate.data.answers import Answer, choices, demonstrations, labelled, pairs
from equilibrate.data.columns import categories_of
from equilibrate.errors import DataError
from equilibrate.types import Category


def pku(**changes):
    return {
        "prompt": ["p", "q"],
        "response_0": ["a", "c"],
        "response_1": ["b", "d"],
        "better_response_id": [0, 1],
    } | changes


def texts(answers):
    return [(answer.prompt, answer.response, answer.side) for answer in answers]


def test_demonstrations():
    columns = {"prompt": ["p"], "response": ["a"], "category": ["IHD"]}
    assert demonstrations(columns) == [
        Answer(prompt="p", response="a", category=Category.IHD, side=1)
    ]


def test_demonstrations_of_pairs_are_the_chosen_answers():
    assert texts(demonstrations(pku())) == [("p", "a", 1), ("q", "d", 1)]


def test_chosen_and_rejected_stand_side_by_side():
    columns = {"prompt": ["p"], "chosen": ["good"], "rejected": ["bad"]}
    assert texts(pairs(columns, by="preference")) == [("p", "good", 1), ("p", "bad", -1)]


def test_pairs_are_ordered_by_the_preferred_response_or_by_helpfulness():
    columns = pku(preferred_response_id=[1, 1])
    preferred = pairs(columns, by="preference")
    assert [answer.response for answer in preferred] == ["b", "a", "d", "c"]
    helpful = pairs(columns, by="helpfulness")
    assert [answer.response for answer in helpful] == ["a", "b", "d", "c"]


def test_without_a_preference_helpfulness_decides():
    assert [a.response for a in pairs(pku(), by="preference")] == ["a", "b", "d", "c"]


def test_safety_follows_its_response():
    columns = pku(is_response_0_safe=[True, False], is_response_1_safe=[False, False])
    found = pairs(columns, by="helpfulness")
    assert [(answer.response, answer.is_safe) for answer in found] == [
        ("a", True),
        ("b", False),
        ("d", False),
        ("c", False),
    ]


def test_a_pair_of_one_answer_is_left_out():
    assert texts(pairs(pku(response_1=["a", "d"]), by="preference")) == [
        ("q", "d", 1),
        ("q", "c", -1),
    ]


def test_only_equal_answers_are_refused():
    with pytest.raises(DataError, match="same response twice"):
        pairs(pku(response_1=["a", "c"]), by="preference")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["p"]}, "column 'response_0' is missing"),
        ({"prompt": ["p"], "chosen": ["a"]}, "column 'rejected' is missing"),
        (pku(better_response_id=[0, 2]), r"row 1, better_response_id \(2\) must be 0 or 1"),
        (
            pku(is_response_0_safe=[None, 1], is_response_1_safe=[1, 1]),
            r"row \d, is_\w+_safe \(None\) must be 0 or 1",
        ),
        (pku(response_0=["a", ["c"]]), r"row \d, \w+ \(.*\) must be text"),
        (pku(category=["EHD", "EDH"]), r"row 1, category \('EDH'\) must be one of GENERAL"),
    ],
)
def test_what_is_wrong_is_named(columns, message):
    with pytest.raises(DataError, match=message):
        pairs(columns, by="helpfulness")


def test_labels_may_be_whole_numbers_of_any_type():
    found = pairs(pku(better_response_id=[1.0, 0.0]), by="helpfulness")
    assert [answer.response for answer in found] == ["b", "a", "c", "d"]


def test_helpfulness_is_read_from_its_own_label_where_there_is_another_order_too():
    columns = pku(chosen=["b", "d"], rejected=["a", "c"])
    assert texts(pairs(columns, by="helpfulness"))[0] == ("p", "a", 1)
    assert texts(pairs(columns, by="preference"))[0] == ("p", "b", 1)


def test_a_demonstration_needs_a_response():
    with pytest.raises(DataError, match="column 'response' is missing"):
        demonstrations({"prompt": ["p"]})


def test_without_classes_all_is_general():
    assert categories_of({"prompt": ["p", "q"]}) == [Category.GENERAL] * 2


SAFETY = {
    "response_0": ["a"] * 5,
    "response_1": ["b"] * 5,
    "prompt": ["p"] * 5,
    "is_response_0_safe": [True, False, False, True, None],
    "is_response_1_safe": [True, False, True, False, None],
    "better_response_id": [1, 1, 0, None, 1],
    "safer_response_id": [0, 0, 1, 0, None],
}
NEITHER = "neither answer is said to be the {} one"


@pytest.mark.parametrize(
    ("prefer", "chosen"),
    [
        ("helpful", [1, 1, 0, NEITHER.format("better"), 1]),
        ("safer", [0, 0, 1, 0, NEITHER.format("safer")]),
        # Both safe: the better; both unsafe: none; else the safe one; no labels: the better.
        ("safe_first", [1, "both answers are unsafe", 1, 0, 1]),
    ],
)
def test_which_answer_of_a_pair_a_policy_learns(prefer, chosen):
    assert choices(SAFETY, prefer) == chosen


def test_what_the_data_prefer_all_told_holds_whatever_is_preferred():
    columns = SAFETY | {"preferred_response_id": [0, 0, 0, 1, None]}
    assert choices(columns, "safe_first") == [0, 0, 0, 1, 1]


def test_two_safe_answers_of_which_none_is_better_teach_nothing():
    columns = {name: values[:1] for name, values in SAFETY.items() if name != "better_response_id"}
    assert choices(columns, "safe_first") == [NEITHER.format("better")]
    # Without ids the labels say which is safer, where they differ.
    columns = {name: values[2:4] for name, values in SAFETY.items() if "id" not in name}
    assert choices(columns, "safer") == [1, 0]


def test_single_answers_that_are_unsafe_or_unwanted_are_not_learned():
    columns = {"prompt": ["p"] * 4, "response": ["a"] * 4, "is_safe": [True, False, None, None],
               "is_good": [None, None, True, False]}  # fmt: skip
    unsafe, unwanted = "the answer is unsafe", "the answer is not wanted"
    assert choices(columns, "safe_first") == [0, unsafe, 0, unwanted]
    assert choices(columns, "helpful") == [0, 0, 0, unwanted]


def test_a_label_alone_orders_the_pairs_that_have_it():
    assert labelled(SAFETY, "better_response_id") == [1, 1, 0, NEITHER.format("better"), 1]
    assert labelled({"prompt": ["p"]}, "better_response_id") == []
