"""A name that a user gave, held against those that exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from equilibrate.errors import ConfigError


def require_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raises: ConfigError with the nearest known name and all of them, unless `name` is known."""
    choices = sorted(known)
    if name in choices:
        return
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(
        f"{what} ({name!r}) is unknown; {hint}known: {', '.join(choices) or 'none at all'}"
    )
