"""Whether the tokens of one model mean the same to another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equilibrate.config.sources import reads_text
from equilibrate.errors import DataError
from equilibrate.text.renderer import load_tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
PROBES = (
    "How do I boil an egg? It's 3.14159 minutes,\n\n\tor 1234567890 seconds!",
    "  two  spaces   and trailing ",
    "naïve café, Größe, Ελληνικά, русский, 汉字かな交じり, العربية, 👩‍👩‍👧 e\u0301",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # O(n)",
)
"""Text that vocabularies with the same entries still cut differently."""


def has_tokenizer(folder: str | Path) -> bool:
    return any((Path(folder) / name).exists() for name in TOKENIZER_FILES)


def largest_id(folder: str | Path) -> int:
    """Largest id that the folder's tokenizer can give."""
    return max(load_tokenizer(folder).get_vocab().values(), default=-1)


def require_tokenizers(policy: str | Path, scorer: str | Path) -> None:
    """Raises: DataError naming the folder without one."""
    for folder in (policy, scorer):
        if not has_tokenizer(folder):
            raise DataError(
                f"{folder}: has no tokenizer, so nobody can tell whether {scorer} reads the tokens "
                f"of {policy} as they are meant; copy the one it was trained with beside it"
            )


def other_tokens(policy: str | Path, scorer: str | Path) -> str:
    """What tells the tokenizers of two folders apart: the first token, or piece of text, that
    differs; empty where each id is the same token to both, where a folder has no tokenizer, and
    where there is no scorer."""
    if not (scorer and has_tokenizer(policy) and has_tokenizer(scorer)):
        return ""
    if all(_is_same_file(policy, scorer, name) for name in TOKENIZER_FILES):
        return ""
    ours, theirs = load_tokenizer(policy), load_tokenizer(scorer)
    our_tokens, their_tokens = (
        {index: token for token, index in tokenizer.get_vocab().items()}
        for tokenizer in (ours, theirs)
    )
    for index in range(max([*our_tokens, *their_tokens], default=-1) + 1):
        ours_here, theirs_here = our_tokens.get(index), their_tokens.get(index)
        if ours_here != theirs_here:
            return f"token {index} is {_shown(theirs_here)} there, {_shown(ours_here)} here"
    different = next((text for text in PROBES if _ids(ours, text) != _ids(theirs, text)), "")
    return f"the same tokens cut {different!r} differently" if different else ""


def reads_what_is_said(policy: str | Path, scorer: str | Path) -> bool:
    """Whether a scorer takes decoded answers and not the policy's tokens, so that no critic can
    start from it."""
    return reads_text(scorer) or bool(other_tokens(policy, scorer))


def start_of_critic(policy: str | Path, scorers: Sequence[str | Path]) -> str | Path:
    """The folder whose trunk a critic starts with: that of the scorers of its heads, if it is one
    and reads the policy's tokens, or the policy's."""
    places = {Path(scorer).resolve() for scorer in scorers}
    if len(places) > 1 or reads_what_is_said(policy, scorers[0]):
        return policy
    return scorers[0]


def _shown(token: str | None) -> str:
    return "no token" if token is None else repr(token)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _is_same_file(one: str | Path, other: str | Path, name: str) -> bool:
    """Of the same content, or in neither folder."""
    contents = {
        path.read_bytes() if path.exists() else None
        for path in (Path(one) / name, Path(other) / name)
    }
    return len(contents) == 1
