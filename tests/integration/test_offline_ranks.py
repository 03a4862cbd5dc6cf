"""What rank 0 alone finds wrong with its checkpoints reaches every rank.

Ranks are threads here and the model is a stand-in: nothing is started.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors.offline import CHECKPOINTS, _RankCheckpoints
from equilibrate.errors import DiskError, ResourceError
from equilibrate.offline.training import Progress
from equilibrate.run.checkpoint import CheckpointStore, FolderLock

SECONDS = 5.0
"""After which a rank waits in vain for the other."""


class Threads:
    """The collectives that the checkpoints use, between two threads."""

    def __init__(self) -> None:
        self.own = threading.local()
        self.meeting = threading.Barrier(2)
        self.shared: Any = None

    def get_rank(self) -> int:
        return int(self.own.rank)

    def get_world_size(self) -> int:
        return 2

    def barrier(self) -> None:
        self.meeting.wait(SECONDS)

    def broadcast_object_list(self, values: list[Any]) -> None:
        if self.own.rank == 0:
            self.shared = values[0]
        self.barrier()
        values[0] = self.shared
        self.barrier()


class Model:
    def __init__(self, dist: Threads) -> None:
        self.dist = dist

    def save(self, folder: Path) -> None:
        self.dist.barrier()
        (folder.with_name(f"of-{self.dist.get_rank()}")).touch()

    def load(self, folder: Path) -> None: ...


def on_both(monkeypatch: pytest.MonkeyPatch, root: Path, model: type[Model] = Model) -> list[Any]:
    """The error of each rank that opens, restores and saves, or None."""
    dist = Threads()
    monkeypatch.setattr("actors.offline.dist", dist)
    monkeypatch.setattr("actors.offline.SECONDS_TO_LET_GO", 0.0)

    def rank(number: int) -> Exception | None:
        dist.own.rank = number
        stand_in: Any = model(dist)
        try:
            with _RankCheckpoints(root / CHECKPOINTS, stand_in) as checkpoints:
                checkpoints.restore()
                checkpoints.save(Progress(step=3, losses=(1.0,)))
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(rank, (0, 1)))


def test_both_write_and_rank_0_seals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_both(monkeypatch, tmp_path) == [None, None]
    names = {path.name for path in (tmp_path / CHECKPOINTS / "iteration-3").iterdir()}
    assert names == {"of-0", "of-1", "progress.json", "MANIFEST.json"}


def in_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    folder.mkdir(mode=0o700)
    return FolderLock(folder)


def damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    (folder / "iteration-1").mkdir(parents=True)
    for path in (folder, folder / "iteration-1"):
        path.chmod(0o700)
    return None


def full_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    def save(*_: object) -> None:
        raise ResourceError("iteration-3: cannot be written (No space left)")

    monkeypatch.setattr(CheckpointStore, "save", save)
    return None


def full_after(folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    def seal(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "_seal", seal)
    return None


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (in_use, ResourceError, "is in use by process"),
        (damaged, ResourceError, "no checkpoint verifies"),
        (full_before, ResourceError, "No space left"),
        (full_after, DiskError, "No space left"),
    ],
)
def test_an_error_of_rank_0_is_raised_on_both(
    fault: Callable[[Path, pytest.MonkeyPatch], object],
    kind: type[ResourceError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = fault(tmp_path / CHECKPOINTS, monkeypatch)
    errors = on_both(monkeypatch, tmp_path)
    del held
    assert [type(error) for error in errors] == [kind, kind]
    assert message in str(errors[0])
    assert str(errors[0]) == str(errors[1])


class FullModel(Model):
    def save(self, folder: Path) -> None:
        if self.dist.get_rank() == 0:
            raise OSError(28, "No space left on device")
        super().save(folder)


def test_an_error_inside_a_collective_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train ends all ranks when one raises what `train_worker` does not return."""
    first, second = on_both(monkeypatch, tmp_path, FullModel)
    assert type(first) is RuntimeError
    assert "rank 0 could not save" in str(first)
    assert "No space left" in str(first)
    assert isinstance(second, threading.BrokenBarrierError)
