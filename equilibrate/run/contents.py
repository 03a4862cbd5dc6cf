"""What a file or folder holds, as a hash; hashes are kept beside the stages and found again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equilibrate.config.sources import file_of, name_of, reads_text
from equilibrate.errors import DataError
from equilibrate.run.sinks import write_whole

CONTENTS_FILE = "contents.json"
SEAL = "STAGE.json"
"""Says how a stage was made: no part of what it holds."""
CARD_FILE = "README.md"
CARD_MARK = "# Written by equilibrate about this model: no part of what it holds."
"""Stands in the first lines of a model card of ours, which is written anew with every report."""
SETTLED_NS = 2_000_000_000
"""A file must have been left alone for so long before its hash is kept: two changes within one tick
of a file system's clock cannot be told apart by its times."""


class Contents:
    """Hashes of inputs, each file's kept in `root` by path, size and times.

    A changed file is noticed by its change time, which no program can set back as it can the time
    of modification. What is not noticed: a file system that keeps no such times, or a clock that is
    set back.

    Several processes may share `root`: the file is written whole, and what one of them loses of
    another's is hashed again.
    """

    def __init__(self, root: Path) -> None:
        self._file = root / CONTENTS_FILE

    def of(self, path: Path | str) -> str:
        """32 hex digits of a file's bytes, or of the names and bytes of a folder's files; of a
        source that reads text, of its name and of the file that holds it.

        Files and folders whose name begins with a dot are no part of it, nor is a stage's seal or a
        model card of ours.
        Raises: DataError for a path that does not exist or cannot be read.
        """
        if reads_text(path):
            file = file_of(path)
            return _hash(f"{name_of(path)} {self.of(file) if file else ''}".encode())
        path = Path(path)
        known = self._known()
        fresh: dict[str, list[Any]] = {}
        try:
            if not path.is_dir():
                digest = _file_hash(path, known, fresh)
            else:
                files = {p.relative_to(path).as_posix(): p for p in _files_below(path)}
                lines = [f"{_file_hash(p, known, fresh)} {n}" for n, p in sorted(files.items())]
                digest = _hash("\n".join(lines).encode())
        except OSError as error:
            raise DataError(
                f"{error.filename or path}: cannot be read ({error.strerror}); give an existing "
                "file or folder"
            ) from None
        if fresh:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            kept = {**self._known(), **fresh}
            here = {name: entry for name, entry in kept.items() if os.path.exists(name)}
            write_whole(self._file, json.dumps(here, indent=0, sort_keys=True) + "\n")
        return digest

    def _known(self) -> dict[str, list[Any]]:
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _files_below(folder: Path) -> Iterator[Path]:
    """Through links too, each folder once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = (Path(parent, f) for f in files if not f.startswith(".") and f != SEAL)
        yield from (file for file in below if not is_card(file))


def is_card(file: Path) -> bool:
    """Whether a file is a model card that `report` wrote, and may write again."""
    if file.name != CARD_FILE or not file.is_file():
        return False
    with file.open("rb") as content:
        return CARD_MARK.encode() in content.read(len(CARD_MARK) + 8)


def _file_hash(path: Path, known: dict[str, list[Any]], fresh: dict[str, list[Any]]) -> str:
    name, stamp = os.path.realpath(path), _stamp(path)
    entry = known.get(name)
    if isinstance(entry, list) and entry[:-1] == stamp:
        return str(entry[-1])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    settled = time.time_ns() - max(stamp[1:]) > SETTLED_NS
    if settled and _stamp(path) == stamp:
        fresh[name] = [*stamp, digest]
    return digest


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
