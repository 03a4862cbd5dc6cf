"""What a disk refuses, as one of our errors; and files that one process holds at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from equilibrate.errors import DiskError, EquilibrateError, ResourceError

# Libraries that write through C++ lose the errno and keep only a text like these.
_FULL_DISK_TEXTS = ("No space left", "File too large", "PytorchStreamWriter", "inline_container")


def require_writable(folder: Path) -> None:
    """Refuse a folder that could not be made or written, without making it.

    Raises: ResourceError naming the part of the path that stands in the way.
    """
    with as_resource_error(folder):
        place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise ResourceError(f"{folder}: cannot be made: {place} is a file; give another output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ResourceError(
            f"{folder}: cannot be written: {place} is closed to this user (or mounted read-only); "
            "give another output"
        )


@contextmanager
def as_resource_error(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into a DiskError that names `path` and the reason."""
    try:
        yield
    except Exception as error:
        if not _is_disk_failure(error):
            raise
        lines = str(error).splitlines() or [repr(error)]
        # A remote error brings its whole traceback along; one line of it has the reason.
        reason = next((line for line in lines if _tells_full_disk(line)), lines[-1]).strip()
        raise DiskError(
            f"{path}: cannot be written ({reason}); free space or give another output"
        ) from error


def _is_disk_failure(error: Exception) -> bool:
    # Lost connections and deadlines are OSErrors too, but not of this disk.
    if isinstance(error, (EquilibrateError, ConnectionError, TimeoutError)):
        return False
    return isinstance(error, OSError) or _tells_full_disk(str(error))


def _tells_full_disk(text: str) -> bool:
    return any(part in text for part in _FULL_DISK_TEXTS)


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Alone in the context, among all processes that hold this file; waits for the others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
