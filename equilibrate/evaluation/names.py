"""A name that a user gave, held against those that exist."""

from __future__ import annotations

from collections.abc import Iterable

from equilibrate.config.files import nearest
from equilibrate.errors import ConfigError


def require_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raises: ConfigError with the nearest known name and all of them, unless `name` is known."""
    choices = sorted(known)
    if name in choices:
        return
    hint = nearest(name, choices)
    raise ConfigError(
        f"{what} ({name!r}) is unknown; {hint + ' ' if hint else ''}"
        f"known: {', '.join(choices) or 'none at all'}"
    )
