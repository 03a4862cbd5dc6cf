"""Who else may write to a checkpoint: its files are unpickled, so nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from equilibrate.errors import ResourceError
from equilibrate.run.checkpoint import CheckpointStore


def write(folder: Path) -> None:
    (folder / "policy").mkdir()
    (folder / "policy" / "rank-0.pt").write_text("weights")
    (folder / "state.json").write_text("{}")


@pytest.mark.parametrize("name", ["policy", "state.json", "."])
def test_group_writable_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    with CheckpointStore(tmp_path / "new", keep=2) as store:
        saved = store.save(1, write)
        (saved.folder / name).chmod(0o775)
        with pytest.raises(
            ResourceError, match=r"must not be writable by .* a group.*chmod -R go-w"
        ):
            store.latest()


def test_the_umask_of_many_machines_leaves_no_checkpoint_open_to_the_group(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with CheckpointStore(tmp_path / "new", keep=2) as store:
            saved = store.save(1, write)
            assert store.latest() == saved
    finally:
        os.umask(before)
    modes = [
        path.stat().st_mode
        for path in (tmp_path / "new", *tmp_path.rglob("*"))
        if path.name != "LATEST"
    ]
    assert not any(mode & 0o022 for mode in modes)
