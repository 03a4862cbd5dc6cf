from __future__ import annotations

import pytest

from equilibrate.config.files import load_config
from tests.unit.config.configs import message_of


@pytest.mark.parametrize(("written", "found"), [("mask", "mask"), ("as_is", "as_is"), ("1.5", 1.5)])
def test_treatment_of_truncated_answers(written: str, found: str | float) -> None:
    assert load_config([], [f"ppo.truncated={written}"]).ppo.truncated == found


@pytest.mark.parametrize("written", ["0", "-1", "drop"])
def test_treatment_of_truncated_answers_is_checked(written: str) -> None:
    assert message_of(f"ppo.truncated={written}").startswith("ppo.truncated")
