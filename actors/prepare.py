"""What PPO starts from: the user's models and prompts, or those of the built-in world.

The world's data, base model, reward and cost model are stages: made once, found again by a hash of
what they depend on.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equilibrate.config import RunConfig
from equilibrate.errors import DataError
from equilibrate.evaluation import CallableJudge, Judge, RefusalMatcher
from equilibrate.stages import Stage, run_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Folders and files of one run."""

    policy: Path
    reward: Path
    cost: Path | None
    """None for plain PPO without AMA: nothing asks for a cost."""
    prompts: Path
    evaluation: Path | None
    ptx: Path | None
    judge: Judge


Announce = Callable[[str], None]


def prepare_inputs(config: RunConfig, run_folder: Path, announce: Announce) -> Inputs:
    """Raises: DataError naming the key of a path that does not exist."""
    if config.data.is_built_in:
        return _make_world(config, run_folder / "stages", announce)
    data = config.data
    return Inputs(
        policy=_existing("policy", data.policy),
        reward=_existing("reward", data.reward),
        cost=_existing("cost", data.cost) if data.cost else None,
        prompts=_existing("prompts", data.prompts),
        evaluation=_existing("evaluation", data.evaluation) if data.evaluation else None,
        ptx=_existing("ptx", data.ptx) if data.ptx else None,
        judge=RefusalMatcher(),
    )


def _existing(key: str, path: str) -> Path:
    if not Path(path).exists():
        raise DataError(f"data.{key} ({path!r}) does not exist; give an existing file or folder")
    return Path(path)
