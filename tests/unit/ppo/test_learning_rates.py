from __future__ import annotations

from typing import Literal

import pytest

from equilibrate.ppo.learning_rates import schedule


@pytest.mark.parametrize(
    ("name", "progress", "expected"),
    [
        ("constant", 0.9, 1.0),
        ("linear", 0.25, 0.75),
        ("linear", 1.0, 0.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.5, 0.5),  # (1 + cos(pi / 2)) / 2
        ("cosine", 1.0, 0.0),
        ("cooldown", 0.7, 1.0),
        ("cooldown", 0.85, 0.5),  # half of the last 30 %
        ("cooldown", 1.0, 0.0),
    ],
)
def test_schedule_by_hand(
    name: Literal["constant", "linear", "cosine", "cooldown"], progress: float, expected: float
) -> None:
    assert schedule(name, progress) == pytest.approx(expected)
