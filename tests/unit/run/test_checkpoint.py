from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from equilibrate.errors import ResourceError, WorkerLostError
from equilibrate.run.checkpoint import (
    CheckpointStore,
    DamagedError,
    FolderLock,
    newest_checkpoint,
    verify_checkpoint,
)


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "rank-0.pt").write_text(text)
        (folder / "state.json").write_text("{}")

    return write


def content(store: CheckpointStore) -> str:
    found = store.latest()
    assert found is not None
    return (found.folder / "policy" / "rank-0.pt").read_text()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def store(root: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(root, keep=2, versions={"torch": "2"}) as store:
        yield store


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")


def test_saved_folder_is_latest_and_has_a_manifest(store: CheckpointStore, root: Path) -> None:
    saved = store.save(0, writer("a"))
    assert saved == store.latest()
    assert saved.iteration == 0
    assert saved.versions == {"torch": "2"}
    manifest = json.loads((saved.folder / "MANIFEST.json").read_text())
    # sha256 of the one byte "a", a published test value.
    assert manifest["files"]["policy/rank-0.pt"] == {
        "size": 1,
        "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
    }
    assert manifest["format"] == 1
    assert names(root) == ["LATEST", "iteration-0"]


def test_fresh_folder_has_no_checkpoint(store: CheckpointStore) -> None:
    assert store.latest() is None


def test_only_the_newest_are_kept(store: CheckpointStore, root: Path) -> None:
    for iteration in (0, 50, 100, 1000):
        store.save(iteration, writer(str(iteration)))
    assert names(root) == ["LATEST", "iteration-100", "iteration-1000"]


def test_same_iteration_is_replaced(store: CheckpointStore, root: Path) -> None:
    store.save(7, writer("first"))
    store.save(7, writer("second"))
    assert content(store) == "second"
    assert names(root) == ["LATEST", "iteration-7"]


@pytest.mark.parametrize("name", ["policy/rank-0.pt", "MANIFEST.json"])
def test_flipped_byte_falls_back_and_names_the_file(
    store: CheckpointStore, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(50, writer("old"))
    damaged = store.save(100, writer("new")).folder / name
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    with caplog.at_level(logging.WARNING):
        assert content(store) == "old"
    assert str(damaged) in caplog.text


@pytest.mark.parametrize("harm", ["missing", "longer", "extra"])
def test_other_damage_falls_back(store: CheckpointStore, harm: str) -> None:
    store.save(50, writer("old"))
    folder = store.save(100, writer("new")).folder
    if harm == "missing":
        (folder / "state.json").unlink()
    elif harm == "longer":
        (folder / "state.json").write_text("{}}")
    else:
        (folder / "extra.pt").write_text("x")
    assert content(store) == "old"


def test_manifest_of_another_folder_or_format_is_refused(store: CheckpointStore) -> None:
    folder = store.save(5, writer("a")).folder
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    for key, value in (("iteration", 6), ("format", 2), ("files", []), ("versions", None)):
        (folder / "MANIFEST.json").write_text(json.dumps({**manifest, key: value}))
        with pytest.raises(DamagedError, match=r"MANIFEST\.json"):
            verify_checkpoint(folder)
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    assert verify_checkpoint(folder).iteration == 5


def test_a_run_with_only_damaged_checkpoints_does_not_start_anew(store: CheckpointStore) -> None:
    folder = store.save(3, writer("a")).folder
    (folder / "state.json").unlink()
    with pytest.raises(ResourceError, match=r"no checkpoint verifies.*state\.json is missing"):
        store.latest()


def test_latest_goes_first_even_before_a_larger_number(store: CheckpointStore, root: Path) -> None:
    store.save(50, writer("old"))
    store.save(100, writer("new"))
    (root / "LATEST").write_text("iteration-50")
    assert content(store) == "old"


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"iteration-", b"iteration-007", b"../x"])
def test_broken_latest_is_ignored(store: CheckpointStore, root: Path, text: bytes) -> None:
    store.save(7, writer("a"))
    (root / "LATEST").write_bytes(text)
    assert content(store) == "a"


def test_latest_that_names_a_missing_folder_steps_back(store: CheckpointStore, root: Path) -> None:
    store.save(7, writer("a"))
    (root / "LATEST").write_text("iteration-9")
    assert content(store) == "a"


def test_after_stepping_back_later_checkpoints_go(store: CheckpointStore, root: Path) -> None:
    store.save(50, writer("old"))
    damaged = store.save(100, writer("new")).folder
    (damaged / "state.json").unlink()
    assert content(store) == "old"
    store.save(75, writer("again"))
    assert names(root) == ["LATEST", "iteration-50", "iteration-75"]


def test_failure_in_write_leaves_the_previous_one(store: CheckpointStore, root: Path) -> None:
    store.save(1, writer("old"))

    def write(folder: Path) -> None:
        (folder / "half.pt").write_text("x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.save(2, write)
    assert content(store) == "old"
    assert names(root) == ["LATEST", "iteration-1"]


@pytest.mark.parametrize("lost", [WorkerLostError("gone"), TimeoutError("late")])
def test_what_is_not_the_disk_passes_through(store: CheckpointStore, lost: Exception) -> None:
    def write(_: Path) -> None:
        raise lost

    with pytest.raises(type(lost)) as caught:
        store.save(2, write)
    assert caught.value is lost


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        RuntimeError("Traceback\n  deep\nOSError: No space left on device\nmore"),
    ],
)
def test_full_disk_is_a_resource_error(
    store: CheckpointStore, root: Path, error: Exception
) -> None:
    store.save(1, writer("old"))

    def write(_: Path) -> None:
        raise error

    with pytest.raises(ResourceError, match=r"No space left|unexpected pos") as caught:
        store.save(2, write)
    assert "\n" not in str(caught.value)
    assert (root / "LATEST").read_text() == "iteration-1"
    assert content(store) == "old"


@pytest.mark.parametrize("library", ["plain", "torch", "safetensors"])
def test_file_size_limit_is_a_resource_error(store: CheckpointStore, library: str) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    store.save(1, writer("old"))

    def write(folder: Path) -> None:
        weights = torch.zeros(100_000)
        if library == "plain":
            (folder / "x").write_bytes(bytes(400_000))
        elif library == "torch":
            torch.save(weights, folder / "x")
        else:
            save_file({"weights": weights}, folder / "x")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match="cannot be written"):
            store.save(2, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(store) == "old"


STEPS = ("fsync", "replace", "mkdir", "rmdir", "unlink")


def save_in_child(root: Path, iteration: int, *, die_at: int) -> bool:
    """Save in a process that dies at its n-th change of the disk; True if it did die."""
    child = os.fork()
    if child == 0:
        left = die_at
        with contextlib.suppress(BaseException):
            store = CheckpointStore(root, keep=2)

            def fatal(real: Callable[..., object]) -> Callable[..., object]:
                def step(*args: object, **kwargs: object) -> object:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os._exit(9)
                    return real(*args, **kwargs)

                return step

            for name in STEPS:
                setattr(os, name, fatal(getattr(os, name)))
            store.save(iteration, writer("new"))
            os._exit(0)
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("iteration", [1, 2], ids=["the same iteration", "the next"])
def test_killed_at_every_step_an_entire_checkpoint_remains(tmp_path: Path, iteration: int) -> None:
    deaths = 0
    seen = set()
    while True:
        root = tmp_path / str(deaths)
        with CheckpointStore(root, keep=2) as store:
            store.save(1, writer("old"))
        if not save_in_child(root, iteration, die_at=deaths + 1):
            break
        deaths += 1
        with CheckpointStore(root, keep=2) as store:
            seen.add(content(store))
            assert not [n for n in names(root) if n.startswith(("tmp-", "replaced-"))]
            store.save(iteration, writer("later"))
            assert content(store) == "later"
    # 2 data files, manifest, 2 folders and LATEST are synced, root twice, 2 renames at least.
    assert deaths >= 10
    assert seen == {"old", "new"}


@pytest.mark.parametrize("step", range(1, 4))
def test_failed_rename_of_the_same_iteration_brings_the_old_one_back(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    store.save(1, writer("old"))
    real, calls = os.replace, 0

    def replace(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ResourceError, match="Input/output error"):
        store.save(1, writer("new"))
    # Renames: old aside, new in place, LATEST. After the second the new one is complete.
    assert content(store) == ("new" if step == 3 else "old")


def test_leftovers_are_removed_on_start(root: Path) -> None:
    (root / "tmp-5-abc").mkdir(parents=True)
    (root / "tmp-5-abc" / "x").write_text("x")
    (root / "tmp-LATEST-abc").write_text("x")
    with CheckpointStore(root, keep=2):
        assert names(root) == []


def test_links_are_refused(store: CheckpointStore, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="is a link"):
        store.save(1, lambda folder: (folder / "x").symlink_to(tmp_path))
    saved = store.save(1, writer("a"))
    (saved.folder / "state.json").unlink()
    (saved.folder / "state.json").symlink_to(saved.folder / "policy" / "rank-0.pt")
    with pytest.raises(DamagedError, match=r"state\.json"):
        verify_checkpoint(saved.folder)


def test_world_writable_folders_are_refused(root: Path, tmp_path: Path) -> None:
    with CheckpointStore(root, keep=2) as store:
        saved = store.save(1, writer("a"))
        (saved.folder / "policy").chmod(0o777)
        with pytest.raises(ResourceError, match=r"policy: must not be writable by everybody.*o-w"):
            store.latest()
    root.chmod(0o777)
    with pytest.raises(ResourceError, match="writable by everybody"):
        CheckpointStore(root, keep=2)


def test_foreign_owner_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CheckpointStore(root, keep=2) as store:
        store.save(1, writer("a"))
        # Somebody who is neither the owner nor facing root's files.
        real = Path.lstat
        status = real(root)
        foreign = os.stat_result((*status[:4], 12_345, *status[5:10]))
        monkeypatch.setattr(Path, "lstat", lambda path: foreign)
        with pytest.raises(ResourceError, match="belongs to user 12345"):
            store.latest()


def test_second_run_is_refused_and_names_the_pid(store: CheckpointStore, root: Path) -> None:
    with pytest.raises(ResourceError, match=f"in use by process {os.getpid()}"):
        CheckpointStore(root, keep=2)
    store.close()
    store.close()
    CheckpointStore(root, keep=2).close()


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from equilibrate.run.checkpoint import FolderLock;"
        "lock = FolderLock(pathlib.Path(sys.argv[1])); print(os.getpid(), flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        pid = child.stdout.readline().strip()
        with pytest.raises(ResourceError, match=f"in use by process {pid}"):
            FolderLock(tmp_path)
        child.kill()
    FolderLock(tmp_path).release()


def test_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ResourceError, match="No locks available"):
        FolderLock(tmp_path)


def test_root_that_cannot_be_made_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"file/checkpoints: cannot be written"):
        CheckpointStore(tmp_path / "file" / "checkpoints", keep=2)


def test_reading_needs_no_lock(store: CheckpointStore, root: Path) -> None:
    store.save(4, writer("a"))
    found = newest_checkpoint(root)
    assert found is not None
    assert found.iteration == 4
    assert newest_checkpoint(root / "nowhere") is None
