"""What a disk refuses, as one of our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from equilibrate.errors import EquilibrateError, ResourceError

# Libraries that write through C++ lose the errno and keep only a text like these.
_FULL_DISK_TEXTS = ("No space left", "File too large", "PytorchStreamWriter", "inline_container")


@contextmanager
def as_resource_error(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into a ResourceError that names `path` and the reason."""
    try:
        yield
    except Exception as error:
        if not _is_disk_failure(error):
            raise
        lines = str(error).splitlines() or [repr(error)]
        # A remote error brings its whole traceback along; one line of it has the reason.
        reason = next((line for line in lines if _tells_full_disk(line)), lines[-1]).strip()
        raise ResourceError(
            f"{path}: cannot be written ({reason}); free space or give another output"
        ) from error


def _is_disk_failure(error: Exception) -> bool:
    # Lost connections and deadlines are OSErrors too, but not of this disk.
    if isinstance(error, (EquilibrateError, ConnectionError, TimeoutError)):
        return False
    return isinstance(error, OSError) or _tells_full_disk(str(error))


def _tells_full_disk(text: str) -> bool:
    return any(part in text for part in _FULL_DISK_TEXTS)
