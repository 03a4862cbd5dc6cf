"""Checkpoints that are complete or absent: atomically written, verified before use.

    ROOT/.lock                     held by the process that writes here
    ROOT/iteration-50/             files of the parts; MANIFEST.json has size and sha256 of each
    ROOT/LATEST                    "iteration-50", moved after the folder is safe on disk
    ROOT/tmp-...                   unfinished, removed by the next run

A folder gets its final name by one rename, after its files and its manifest are on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from equilibrate.errors import ResourceError
from equilibrate.run.disk import as_resource_error

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
LATEST = "LATEST"
_PREFIX = "iteration-"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder whose manifest verified."""

    iteration: int
    folder: Path
    versions: Mapping[str, str]
    """Of the libraries that wrote it."""


class DamagedError(Exception):
    """A checkpoint folder does not match its manifest; the message names the file."""


class FolderLock:
    """Keeps a second run out of an output folder.

    The kernel drops the lock with its process, so a run that was killed leaves nothing to clean up.

    Raises: ResourceError naming the process that holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / ".lock"
        with as_resource_error(folder):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise ResourceError(
                    f"{path}: cannot be locked ({error.strerror}); put the output folder on a file "
                    "system with locks"
                ) from None
            raise ResourceError(
                f"{folder}: is in use by process {holder}; wait for that run or give another output"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class CheckpointStore:
    """The checkpoints of one run; the only writer of its folder.

    Args:
        root: made if it is missing; refused if others could write to it, because DeepSpeed's files
            are unpickled and could run anything.
        keep: newest checkpoints that stay.
        versions: of the libraries at work, written into each manifest.

    Raises: ResourceError if the folder is in use, unsafe, or cannot be written.
    """

    def __init__(self, root: Path, keep: int, versions: Mapping[str, str] | None = None) -> None:
        self._root = root
        self._keep = keep
        self._versions = dict(versions or {})
        with as_resource_error(root):
            if not root.is_dir():
                root.mkdir(parents=True, exist_ok=True)
                _make_private(root)
        _require_private(root)
        self._lock = FolderLock(root)
        self._clean_up()

    def close(self) -> None:
        """Let another run use the folder."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, iteration: int, write: Callable[[Path], None]) -> Checkpoint:
        """Let `write` fill a folder, then make it the newest checkpoint.

        One of the same iteration is replaced. Those of later iterations are removed: the run has
        stepped back behind them.

        Raises: ResourceError if the disk is full or fails; LATEST and what it names are untouched
            then. What `write` raises otherwise passes through, with the same guarantee.
        """
        unfinished = self._root / f"tmp-{iteration}-{uuid.uuid4().hex}"
        final = self._root / f"{_PREFIX}{iteration}"
        try:
            with as_resource_error(final):
                unfinished.mkdir(mode=0o700)
                write(unfinished)
                self._seal(unfinished, iteration)
                self._put_in_place(unfinished, final)
                self._point_latest_at(final.name)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            self._settle_replaced()
        self._prune(iteration)
        return Checkpoint(iteration=iteration, folder=final, versions=self._versions)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None in a fresh folder. See `newest_checkpoint`."""
        return newest_checkpoint(self._root)

    def _seal(self, folder: Path, iteration: int) -> None:
        files = {}
        for path in _files_of(folder):
            files[path.relative_to(folder).as_posix()] = _describe(path)
            _sync(path)
        manifest = {
            "format": FORMAT_VERSION,
            "iteration": iteration,
            "versions": self._versions,
            "files": files,
        }
        _write_synced(folder / MANIFEST, json.dumps(manifest, indent=1))
        for path in (*folder.rglob("*"), folder):
            _make_private(path)
            if path.is_dir():
                _sync(path)

    def _put_in_place(self, unfinished: Path, final: Path) -> None:
        if final.exists():
            # A folder cannot replace a full one. Whatever stops us here, `_settle_replaced` comes.
            os.replace(final, self._root / f"replaced-{final.name}")
        os.replace(unfinished, final)
        _sync(self._root)

    def _settle_replaced(self) -> None:
        """Remove what a save of the same iteration replaced, or bring it back if that failed."""
        for replaced in self._root.glob(f"replaced-{_PREFIX}*"):
            final = self._root / replaced.name.removeprefix("replaced-")
            if final.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                os.replace(replaced, final)

    def _point_latest_at(self, name: str) -> None:
        unfinished = self._root / f"tmp-{LATEST}-{uuid.uuid4().hex}"
        try:
            _write_synced(unfinished, name)
            os.replace(unfinished, self._root / LATEST)
        finally:
            unfinished.unlink(missing_ok=True)
        _sync(self._root)

    def _prune(self, current: int) -> None:
        numbers = sorted(_iterations(self._root), reverse=True)
        kept = [number for number in numbers if number <= current][: self._keep]
        for number in set(numbers) - set(kept):
            # Renamed first: a half-deleted folder must not look like a damaged checkpoint.
            doomed = self._root / f"tmp-pruned-{uuid.uuid4().hex}"
            os.replace(self._root / f"{_PREFIX}{number}", doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _clean_up(self) -> None:
        self._settle_replaced()
        for leftover in self._root.glob("tmp-*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def newest_checkpoint(root: Path) -> Checkpoint | None:
    """What LATEST names if it verifies, else the newest other folder that does, with a warning.

    Needs no lock, so that a running run can be looked at. None if there is no checkpoint at all.

    Raises: ResourceError if checkpoints exist and none verifies, or if others could have written
        them.
    """
    candidates = sorted(_iterations(root), reverse=True)
    named = _iteration_of(_read_latest(root))
    if named is not None:
        candidates = [named, *(number for number in candidates if number != named)]
    damages = []
    for number in candidates:
        try:
            return verify_checkpoint(root / f"{_PREFIX}{number}")
        except DamagedError as error:
            damages.append(str(error))
            logger.warning("checkpoint passed over: %s", error)
    if damages:
        raise ResourceError(
            f"{root}: no checkpoint verifies ({'; '.join(damages)}); restore one from a copy, or "
            "remove the folder to start anew"
        )
    return None


def kept_iterations(root: Path) -> list[int]:
    """Iterations of the checkpoints that are there, whole or not, oldest first."""
    return sorted(_iterations(root))


def checkpoint_folder(root: Path, iteration: int) -> Path:
    return root / f"{_PREFIX}{iteration}"


def verify_checkpoint(folder: Path) -> Checkpoint:
    """Compare every file with the manifest.

    Raises: DamagedError naming the first file that differs, ResourceError if others could have
        written it.
    """
    if not folder.is_dir():
        raise DamagedError(f"{folder} is missing")
    for path in (folder, *folder.rglob("*")):
        _require_private(path)
    manifest = _read_manifest(folder)
    found = {path.relative_to(folder).as_posix(): path for path in _files_of(folder)}
    del found[MANIFEST]
    for name, expected in manifest["files"].items():
        if name not in found:
            raise DamagedError(f"{folder / name} is missing")
        path = found.pop(name)
        if path.stat().st_size != expected["size"] or _describe(path) != expected:
            raise DamagedError(f"{path} differs from its sha256 in {MANIFEST}")
    if found:
        raise DamagedError(f"{folder / min(found)} is not in {MANIFEST}")
    return Checkpoint(iteration=manifest["iteration"], folder=folder, versions=manifest["versions"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        known = manifest["format"] == FORMAT_VERSION
        complete = isinstance(manifest["files"], dict) and isinstance(manifest["versions"], dict)
        in_place = folder.name == f"{_PREFIX}{manifest['iteration']}"
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedError(f"{path} cannot be read ({error})") from None
    if not (known and complete and in_place):
        raise DamagedError(f"{path} is not of this folder and of format {FORMAT_VERSION}")
    return dict(manifest)


def _read_latest(root: Path) -> str:
    try:
        return (root / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _iterations(root: Path) -> list[int]:
    numbers = (_iteration_of(path.name) for path in root.glob(f"{_PREFIX}*"))
    return [number for number in numbers if number is not None]


def _iteration_of(name: str) -> int | None:
    digits = name.removeprefix(_PREFIX)
    is_plain = name.startswith(_PREFIX) and digits.isascii() and digits.isdecimal()
    return int(digits) if is_plain and str(int(digits)) == digits else None


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def _describe(path: Path) -> dict[str, Any]:
    if path.is_symlink():
        raise DamagedError(f"{path} is a link; a checkpoint holds plain files")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _make_private(path: Path) -> None:
    """Whatever the umask, which leaves files open to the group on many machines."""
    mode = path.lstat().st_mode
    if mode & _OTHERS_WRITE and not stat.S_ISLNK(mode):
        path.chmod(stat.S_IMODE(mode) & ~_OTHERS_WRITE)


def _require_private(path: Path) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return
    if status.st_mode & _OTHERS_WRITE:
        raise ResourceError(
            f"{path}: must not be writable by everybody or by a group, who could have it run their "
            f"code; try chmod -R go-w {path}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise ResourceError(
            f"{path}: belongs to user {status.st_uid}, not to you ({os.geteuid()}); loading it "
            "could run that user's code; use an output folder of your own"
        )


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
