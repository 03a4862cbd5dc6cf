"""Recorded settings of an older form, carried to the form of today, one explicit step at a time.

A setting that was added since a run counts at its default. Where the default is not what was done
before there was a choice, a step here says so, and `SETTINGS_FORMAT` goes up by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from equilibrate.config.study import Kind
from equilibrate.errors import DataError

Settings = Mapping[str, Any]
Step = Callable[[Kind, Settings], Settings]
"""Kind and resolved settings of one format -> those of the next; the argument stays as it is."""

STEPS: Mapping[int, Step] = {}
"""Step n carries format n to n + 1. A file keeps what was recorded: steps are taken on reading."""
SETTINGS_FORMAT = 1 + len(STEPS)
"""The form of settings that runs record today."""


def carry(kind: Kind, config: Settings, since: int, steps: Mapping[int, Step] = STEPS) -> Settings:
    """Settings recorded in format `since`, in that of today.

    Raises: DataError for a format that no version up to this one wrote.
    """
    today = 1 + len(steps)
    if not 1 <= since <= today:
        raise DataError(
            f"settings_format ({since}) must be from 1 to {today}; a later one was written by a "
            "newer version of equilibrate: read it with that"
        )
    for number in range(since, today):
        config = steps[number](kind, config)
    return config
