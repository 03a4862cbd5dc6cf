"""Whether the tokens of one model mean the same to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def require_same_tokens(policy: str | Path, scorer: str | Path) -> None:
    """A scorer reads the policy's token ids, so each must be the same token to both.

    Raises: DataError naming both folders and the first token, or piece of text, that differs.
    """
    for folder in (policy, scorer):
        if not has_tokenizer(folder):
            raise DataError(
                f"{folder}: has no tokenizer, so nobody can tell whether {scorer} reads the tokens "
                f"of {policy} as they are meant; copy the one it was trained with beside it"
            )
    if all(_is_same_file(policy, scorer, name) for name in TOKENIZER_FILES):
        return
    ours, theirs = load_tokenizer(policy), load_tokenizer(scorer)
    our_tokens, their_tokens = (
        {index: token for token, index in tokenizer.get_vocab().items()}
        for tokenizer in (ours, theirs)
    )
    for index in range(max([*our_tokens, *their_tokens], default=-1) + 1):
        ours_here, theirs_here = our_tokens.get(index), their_tokens.get(index)
        if ours_here != theirs_here:
            raise DataError(
                f"{scorer} reads the token ids of {policy}, and token {index} is "
                f"{_shown(theirs_here)} there, {_shown(ours_here)} here; give a scorer that was "
                "trained with the policy's tokenizer"
            )
    for text in PROBES:
        if _ids(ours, text) != _ids(theirs, text):
            raise DataError(
                f"{scorer} and {policy} have the same tokens and cut text differently, for example "
                f"{text!r}; give a scorer that was trained with the policy's tokenizer"
            )


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
