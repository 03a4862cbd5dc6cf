"""The format of settings, by number, and what carries older ones to that of today.

A setting that was added since a tree was written counts at its default. Where the default is not
what was done before there was a choice, where a key is gone, or where the same settings lead to
other numbers, a step here says so, and `SETTINGS_FORMAT` goes up by one. Recorded results are
carried over by its function on reading; of a run, the user is told its sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from equilibrate.errors import ConfigError, DataError

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From one format to the next."""

    carry: Callable[[str, Settings], Settings]
    """Kind of run and its settings in full -> settings that mean the same; the argument stays."""
    text: str
    """What to write in settings of the format before so that they mean the same; "" for nothing."""


def _dpo_learned_every_chosen_token(kind: str, settings: Settings) -> Settings:
    objective = settings.get("objective") or {}
    if objective.get("type") != "dpo" or not settings.get("ama"):
        return settings
    return {**settings, "objective": {**objective, "nll_on": "all"}}


def _policies_learned_the_better_answer(kind: str, settings: Settings) -> Settings:
    data = settings.get("data") or {}
    objective = (settings.get("objective") or {}).get("type", "dpo")
    if kind != "fit" or not data.get("policy") or objective not in ("sft", "dpo", "derta"):
        return settings
    return {**settings, "data": {**data, "prefer": "helpful"}}


STEPS: Mapping[int, Step] = {
    # Checkpoints name the content of their inputs, and stages are found by it.
    1: Step(carry=lambda kind, settings: settings, text=""),
    # The second term of a masked DPO was on all tokens of the chosen answer.
    2: Step(
        carry=_dpo_learned_every_chosen_token,
        text="with objective.type dpo and a mask write objective.nll_on: all",
    ),
    # Of a pair whose better answer is unsafe the unsafe one was learned.
    3: Step(
        carry=_policies_learned_the_better_answer,
        text="with pairs of your own and objective.type sft, dpo or derta write data.prefer: "
        "helpful",
    ),
}
"""Step n carries format n to n + 1. A file keeps what was recorded: steps are taken on reading."""
SETTINGS_FORMAT = 1 + len(STEPS)
"""The format of settings that are written today."""
UNNUMBERED = 1
"""The format of a run's settings without a number."""


def carry(
    kind: str, config: Settings, since: int, steps: Mapping[int, Step] = STEPS
) -> dict[str, Any]:
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
        config = steps[number].carry(kind, config)
    return {**config, "settings_format": today}


def require_today(number: Any) -> Any:
    """For pydantic. Raises: ValueError that says how to carry settings of an older format over."""
    if number == SETTINGS_FORMAT:
        return number
    if not isinstance(number, int) or not UNNUMBERED <= number < SETTINGS_FORMAT:
        raise ValueError(f"must be {SETTINGS_FORMAT}, the newest that this equilibrate reads")
    steps = [text for n in range(number, SETTINGS_FORMAT) if (text := STEPS[n].text)]
    steps.append(f"write settings_format: {SETTINGS_FORMAT}")
    raise ValueError(f"must be {SETTINGS_FORMAT}; to carry the settings over: {'; '.join(steps)}")


def require_resumable(state: Mapping[str, Any], place: object) -> None:
    """Raises: ConfigError if a run saved this state under settings of another format."""
    number = state.get("settings_format", UNNUMBERED)
    if number != SETTINGS_FORMAT:
        raise ConfigError(
            f"{place}: was saved under settings_format {number}, and this is {SETTINGS_FORMAT}, "
            "which may compute other numbers; choose another output folder to begin anew, or "
            "finish the run with the equilibrate that began it"
        )
