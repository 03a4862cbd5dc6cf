"""What the door says about settings."""

from __future__ import annotations

import pytest

from equilibrate.config.files import load_config
from equilibrate.errors import ConfigError


def message_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config([], overrides)
    return str(caught.value)
