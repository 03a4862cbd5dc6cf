"""Which class a prompt belongs to: names of labels, the two flags behind them, a word list.

Taxonomy of fine-grained data (Equilibrate RLHF): what matters is whether the content itself is
risky, and whether the asker means harm. Both, one or none give MHD, EHD or IHD, GENERAL.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from equilibrate.errors import DataError
from equilibrate.types import Category

_LABELS = {
    "factual risk": Category.EHD,
    "intentional risk": Category.IHD,
    "mixed risk": Category.MHD,
    "no risk": Category.GENERAL,
    "none": Category.GENERAL,
    **{category.value.lower(): category for category in Category},
}

UNDECIDED = "other"
"""Label of rows that the annotators could not place: usable for no class."""

_BY_FLAGS = {
    (True, False): Category.EHD,
    (False, True): Category.IHD,
    (True, True): Category.MHD,
}
"""(risky content, malicious intent)"""


def category_of(
    *, risky_content: bool, malicious_intent: bool, sounds_harmful: bool = False
) -> Category:
    """The class of two independent flags; BORDERLINE has neither and only sounds harmful."""
    neither = Category.BORDERLINE if sounds_harmful else Category.GENERAL
    return _BY_FLAGS.get((risky_content, malicious_intent), neither)


def parse_label(label: str) -> Category:
    """The class that a label of a data set names, in any case: "Factual Risk", "EHD", "No risk".

    Raises: DataError for OTHER, which fits no class, and for unknown labels.
    """
    key = " ".join(re.split(r"[\s_-]+", label.strip().lower()))
    if key in _LABELS:
        return _LABELS[key]
    if key == UNDECIDED:
        raise DataError(
            f"category ({label!r}) must name a class; OTHER fits none, so label or drop the row"
        )
    names = ", ".join(category.value for category in Category)
    close = difflib.get_close_matches(key, _LABELS, n=1)
    hint = f"did you mean {_LABELS[close[0]].value}?" if close else "or a risk such as Factual Risk"
    raise DataError(f"category ({label[:80]!r}) must be one of {names}; {hint}")


class LexiconLabeller:
    """A deterministic stand-in for the judge: word lists instead of understanding.

    Args:
        risky_words: words or phrases whose presence makes the content risky.
        intent_patterns: regular expressions that show malicious intent.
    """

    def __init__(self, risky_words: Iterable[str], intent_patterns: Iterable[str]) -> None:
        words = sorted(re.escape(word) for word in risky_words)
        patterns = [f"(?:{pattern})" for pattern in intent_patterns]
        self._risky = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE)
        self._intent = re.compile("|".join(patterns), re.IGNORECASE)
        self._has_words, self._has_patterns = bool(words), bool(patterns)

    def __call__(self, text: str) -> Category:
        is_risky = self._has_words and self._risky.search(text) is not None
        is_malicious = self._has_patterns and self._intent.search(text) is not None
        return category_of(risky_content=is_risky, malicious_intent=is_malicious)
