"""Recorded settings of an older form: step by step to that of today, and no further."""

from __future__ import annotations

import pytest

from equilibrate.errors import DataError
from equilibrate.study.carry import SETTINGS_FORMAT, STEPS, carry

CHAIN = {
    1: lambda kind, config: {**config, "second": kind},
    2: lambda kind, config: {**config, "third": len(config)},
}


@pytest.mark.parametrize(
    ("since", "carried"),
    [
        (1, {"first": 0, "second": "fit", "third": 2}),
        (2, {"first": 0, "third": 1}),
        (3, {"first": 0}),
    ],
)
def test_each_step_is_taken_once_in_order(since: int, carried: dict[str, object]):
    recorded = {"first": 0}
    assert carry("fit", recorded, since, CHAIN) == carried
    assert recorded == {"first": 0}


@pytest.mark.parametrize("since", [0, 4])
def test_a_format_that_nobody_wrote_is_refused(since: int):
    with pytest.raises(DataError, match=rf"settings_format \({since}\) must be from 1 to 3"):
        carry("fit", {}, since, CHAIN)


def test_there_is_a_step_from_every_format_to_the_next():
    assert sorted(STEPS) == list(range(1, SETTINGS_FORMAT))
