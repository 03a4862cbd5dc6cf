"""What every test relies on: no downloads, no usage reports, the same examples each time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before any library reads them; a value that the caller has set stays.
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "WANDB_MODE": "offline",
}.items():
    os.environ.setdefault(_name, _value)

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

INTEGRATION_TIMEOUT_SECONDS = 600
TESTS = Path(__file__).parent
LONGEST = ("test_train.py", "test_fit.py", "test_pools.py", "test_learner.py", "test_study.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folder decides the marker, so that none can be forgotten; the longest files go first.

    Two processes take a file each in turn: a long one at the end would leave one of them idle.
    """
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else 99)
    for item in items:
        if item.path.is_relative_to(TESTS / "integration"):
            item.add_marker("integration")
        elif item.path.is_relative_to(TESTS / "faults"):
            item.add_marker("faults")
        elif item.path.is_relative_to(TESTS / "gpu"):
            item.add_marker("gpu")
        else:
            continue
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(INTEGRATION_TIMEOUT_SECONDS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.accelerator.is_available():
            pytest.skip("needs a GPU")
