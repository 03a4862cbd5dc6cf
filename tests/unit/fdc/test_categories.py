from __future__ import annotations

import pytest

from equilibrate.data.recognition import parse_label
from equilibrate.errors import DataError
from equilibrate.fdc.categories import LexiconLabeller, category_of
from equilibrate.types import Category


@pytest.mark.parametrize(
    ("label", "category"),
    [
        ("Factual Risk", Category.EHD),
        ("intentional_risk", Category.IHD),
        (" MIXED-RISK ", Category.MHD),
        ("No risk", Category.GENERAL),
        ("NONE", Category.GENERAL),
        ("EHD", Category.EHD),
        ("ihd", Category.IHD),
        ("MHD", Category.MHD),
        ("GENERAL", Category.GENERAL),
        ("Borderline", Category.BORDERLINE),
    ],
)
def test_every_spelling_of_a_label_is_read(label: str, category: Category) -> None:
    assert parse_label(label) is category


def test_other_is_rejected_with_the_reason() -> None:
    with pytest.raises(DataError, match="OTHER fits none"):
        parse_label("OTHER")


@pytest.mark.parametrize(
    ("label", "hint"),
    [("Factual Rsik", "did you mean EHD"), ("BORDERLNE", "did you mean BORDERLINE")],
)
def test_misspelt_label_names_the_nearest(label: str, hint: str) -> None:
    with pytest.raises(DataError, match=f"{label}.*must be one of GENERAL, BORDERLINE.*{hint}"):
        parse_label(label)


def test_foreign_label_names_all() -> None:
    with pytest.raises(DataError, match="must be one of GENERAL, BORDERLINE, EHD, IHD, MHD"):
        parse_label("7")


@pytest.mark.parametrize(
    ("risky", "malicious", "sounds", "category"),
    [
        (True, False, True, Category.EHD),
        (False, True, True, Category.IHD),
        (True, True, False, Category.MHD),
        (False, False, True, Category.BORDERLINE),
        (False, False, False, Category.GENERAL),
    ],
)
def test_two_flags_make_the_class(
    risky: bool, malicious: bool, sounds: bool, category: Category
) -> None:
    found = category_of(risky_content=risky, malicious_intent=malicious, sounds_harmful=sounds)
    assert found is category


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("How is Arsenic stored?", Category.EHD),
        ("Mock my sister about her cat", Category.IHD),
        ("Make fun of him, then give him arsenic", Category.MHD),
        ("How is salt stored?", Category.GENERAL),
        # Whole words only: "arsenical" is not on the list.
        ("An arsenical green pigment", Category.GENERAL),
        ("nerve gas?", Category.EHD),
    ],
)
def test_lexicon_labeller_crosses_content_and_intent(text: str, category: Category) -> None:
    labeller = LexiconLabeller(["arsenic", "nerve gas"], [r"\bmock\b", r"make fun of"])
    assert labeller(text) is category


def test_empty_lists_find_nothing() -> None:
    assert LexiconLabeller([], [])("arsenic") is Category.GENERAL
