"""What every worker must find where it runs: the driver's storage, versions and code.

A cluster whose machines differ starts all the same, and fails hours later or not at all: a
checkpoint of which each machine holds a part, two builds of a kernel in one learner. So each worker
looks before it loads anything, also one that comes in for another.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import equilibrate
from equilibrate.errors import ResourceError
from equilibrate.run.versions import installed_versions

NONCE_FILE = ".nonce-{}"
"""In the run's folder, one for each group of workers; whoever reads in it what the driver wrote
shares its storage. A file of its own name is in no cache of another machine."""
PATIENCE_SECONDS = 10.0
"""Shared storage may show a new file late."""
_PACKAGES = ("actors", "equilibrate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The driver's side of it, for `require` in a worker."""

    file: str
    nonce: str
    versions: Mapping[str, str]

    @classmethod
    def write(cls, run: Path) -> Agreement:
        """Args: run: folder that all machines are to share; made where it is not there."""
        run.mkdir(parents=True, exist_ok=True)
        nonce = secrets.token_hex(8)
        file = run.resolve() / NONCE_FILE.format(nonce)
        file.write_text(nonce)
        return cls(file=str(file), nonce=nonce, versions=versions_here())

    def forget(self) -> None:
        """No worker will ask any more."""
        Path(self.file).unlink(missing_ok=True)

    def require(self, machine: str) -> None:
        """Args: machine: name of the one that this process runs on.
        Raises: ResourceError naming it and what differs.
        """
        self._require_storage(machine)
        here = versions_here()
        differing = [
            f"{name} {here.get(name, 'is missing')} (the driver has {wanted})"
            for name, wanted in self.versions.items()
            if here.get(name) != wanted
        ]
        if differing:
            raise ResourceError(
                f"{machine} has other software than the driver: {', '.join(differing)}; "
                "give every machine the same environment and the same code"
            )

    def _require_storage(self, machine: str) -> None:
        folder = Path(self.file).parent
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._read(machine) != self.nonce:
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"{machine} does not share the run's folder {folder}: what the driver wrote "
                    "there is not found; choose an output on storage that all machines have at "
                    "the same path, or keep this machine out of the cluster"
                )
            time.sleep(min(0.5, PATIENCE_SECONDS))

    def _read(self, machine: str) -> str:
        try:
            return Path(self.file).read_text()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise ResourceError(
                f"{machine} cannot read the run's folder {Path(self.file).parent}: {error}"
            ) from None


@cache
def versions_here() -> dict[str, str]:
    """Of the libraries that decide the numbers, and of this project's code, as at the first call:
    a process goes on with what it has loaded."""
    return {_library(name): _release(version) for name, version in installed_versions().items()} | {
        "code": _code()
    }


def _library(distribution: str) -> str:
    return distribution.removesuffix("-cpu")


def _release(version: str) -> str:
    """Without the build (`+cpu`): the driver may sit on a machine that has no GPU."""
    return version.partition("+")[0]


def _code() -> str:
    """12 hex digits of the source files that a worker may import."""
    root = Path(equilibrate.__file__).parents[1]
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((root / package).rglob("[!.]*.py")):  # no editor's hidden copies
            digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
