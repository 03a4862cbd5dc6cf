"""Where numbers come from: the kind of machine, and the commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[2]
CODE = ("equilibrate", "actors", "deploy")
"""Folders of the tree whose content decides what a run gives."""
GIT_SECONDS = 30.0


def machine() -> dict[str, Any]:
    """The kind of machine, not its name: processor, cores, memory in GiB, system."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def commit(tree: Path = TREE) -> str | None:
    """The commit that the code in `tree` is of, 40 hex digits; `+` behind it where code differs.

    None where that is not known: no git, or no checkout, as in the working folder of a job.
    """
    if not (tree / ".git").exists() or (head := _git(tree, "rev-parse", "HEAD")) is None:
        return None
    changed = _git(tree, "status", "--porcelain", "--untracked-files=no", "--", *CODE)
    return head + ("+" if changed else "")


def _git(tree: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(tree), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
