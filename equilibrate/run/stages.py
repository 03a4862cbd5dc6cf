"""Work that is done once: a stage is made, sealed and found again by a hash of all its inputs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEAL = "STAGE.json"
STEERING = frozenset(
    {
        "output",
        "timeout_seconds",
        "max_restarts",
        "keep_checkpoints",
        "checkpoint_every",
        "wandb_project",
        "cpus",
        "gpus",
        "memory_gib",
    }
)
"""Settings, wherever they stand, that say how a run is carried out and not what it computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step before PPO, for example training the cost model."""

    name: str
    inputs: Mapping[str, Any]
    """All that the result depends on, as plain JSON: settings, seeds, keys of earlier stages."""
    make: Callable[[Path], None]
    """Fills an empty folder."""

    @property
    def key(self) -> str:
        return short_hash({"name": self.name, "inputs": self.inputs})

    def folder(self, root: Path) -> Path:
        return root / f"{self.name}-{self.key}"

    def is_made(self, root: Path) -> bool:
        return (self.folder(root) / SEAL).is_file()


def run_stage(stage: Stage, root: Path) -> Path:
    """The stage's folder under `root`, made now or found.

    The folder appears under its name only when it is complete, so a killed call leaves nothing that
    a later one could mistake for a result.
    """
    folder = stage.folder(root)
    if stage.is_made(root):
        return folder
    # By key: several stages of one name may be under way in a folder that runs share.
    work = root / f"tmp-{stage.name}-{stage.key}"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True)
    stage.make(work)
    (work / SEAL).write_text(json.dumps(dict(stage.inputs), indent=1, sort_keys=True))
    os.replace(work, folder)
    return folder


def short_hash(tree: Any) -> str:
    """12 hex digits of a plain tree, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def decisive(settings: Any) -> Any:
    """A plain tree without `STEERING`: all that a result depends on."""
    if not isinstance(settings, Mapping):
        return settings
    return {name: decisive(part) for name, part in settings.items() if name not in STEERING}
