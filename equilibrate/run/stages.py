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

from equilibrate.run.contents import SEAL
from equilibrate.run.disk import held
from equilibrate.run.versions import library_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step before a training, for example the training of its cost model."""

    name: str
    format: int
    """Raised by hand when the code of the stage changes what it makes."""
    inputs: Mapping[str, Any]
    """All else that the result depends on, as plain JSON: `result_settings` of what it reads, and
    `Contents.of` its files."""
    libraries: tuple[str, ...]
    """Distributions whose code computes the result; of absent ones nothing is asked."""
    make: Callable[[Path], None]
    """Fills an empty folder."""
    goes_on: bool = False
    """Whether `make` may find in the folder what a call that was killed has left there."""

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "format": self.format,
            "inputs": dict(self.inputs),
            "versions": library_versions(self.libraries),
        }

    @property
    def key(self) -> str:
        return short_hash(self.identity)

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
    # By key: several stages of one name may be under way in a folder that runs share.
    with held(root / f".{stage.name}-{stage.key}.lock"):
        if not stage.is_made(root):
            _make(stage, root, folder)
    return folder


def _make(stage: Stage, root: Path, folder: Path) -> None:
    work = root / f"tmp-{stage.name}-{stage.key}"
    if not stage.goes_on:
        shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    stage.make(work)
    (work / SEAL).write_text(json.dumps(stage.identity, indent=1, sort_keys=True))
    os.replace(work, folder)


def short_hash(tree: Any) -> str:
    """12 hex digits of a plain tree, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
