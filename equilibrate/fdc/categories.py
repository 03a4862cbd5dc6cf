"""Which class a prompt belongs to: names of labels, the two flags behind them, a word list.

Taxonomy of fine-grained data (Equilibrate RLHF): what matters is whether the content itself is
risky, and whether the asker means harm. Both, one or none give MHD, EHD or IHD, GENERAL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from equilibrate.types import Category

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
