"""Content names an input: not its place, not its times, and never a hash that is out of date."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from equilibrate.errors import DataError
from equilibrate.run import contents
from equilibrate.run.contents import CARD_MARK, CONTENTS_FILE, SEAL, Contents


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as left alone from the start."""
    monkeypatch.setattr(contents, "SETTLED_NS", -(10**18))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "parts").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "parts" / "weights").write_bytes(b"\0" * 100)
    return made


def test_equal_bytes_in_another_place_are_the_same(folder: Path, tmp_path: Path) -> None:
    store = Contents(tmp_path / "stages")
    before = store.of(folder)
    assert len(before) == 32
    moved = folder.rename(tmp_path / "elsewhere")
    os.utime(moved / "config.json", (1, 1))
    assert store.of(moved) == before
    assert store.of(moved / "config.json") != before


@pytest.mark.parametrize("change", ["bytes", "name", "more", "less"])
def test_other_content_is_noticed(change: str, folder: Path, tmp_path: Path, settled: None) -> None:
    store = Contents(tmp_path / "stages")
    before = store.of(folder)
    file = folder / "config.json"
    if change == "bytes":
        status = file.stat()
        file.write_text("[]")
        # As large and, by its time of modification, as old as before.
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (2, status.st_mtime_ns)
    elif change == "name":
        file.rename(folder / "settings.json")
    elif change == "more":
        (folder / "empty").touch()
    else:
        file.unlink()
    assert store.of(folder) != before
    assert Contents(tmp_path / "stages").of(folder) != before


def test_an_unchanged_file_is_not_read_again(
    folder: Path, tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Contents(tmp_path / "stages").of(folder)
    known = json.loads((tmp_path / "stages" / CONTENTS_FILE).read_text())
    assert known.keys() == {str(folder / "config.json"), str(folder / "parts" / "weights")}
    monkeypatch.setattr(contents.hashlib, "file_digest", None)
    assert Contents(tmp_path / "stages").of(folder) == before


def test_a_hash_is_kept_only_of_a_file_that_was_left_alone(folder: Path, tmp_path: Path) -> None:
    Contents(tmp_path / "stages").of(folder)
    assert not (tmp_path / "stages").exists()
    assert time.time_ns() - (folder / "config.json").stat().st_mtime_ns < contents.SETTLED_NS


def test_what_is_gone_is_forgotten(folder: Path, tmp_path: Path, settled: None) -> None:
    store = Contents(tmp_path)
    store.of(folder)
    (folder / "config.json").unlink()
    (folder / "added").touch()
    store.of(folder)
    names = {Path(name).name for name in json.loads((tmp_path / CONTENTS_FILE).read_text())}
    assert names == {"weights", "added"}


@pytest.mark.parametrize("text", ["", "[]", '{"x": 1', '{"PLACE": ["odd"]}', '{"PLACE": 3}'])
def test_a_broken_file_of_hashes_is_made_anew(
    text: str, folder: Path, tmp_path: Path, settled: None
) -> None:
    before = Contents(tmp_path / "other").of(folder)
    file = tmp_path / CONTENTS_FILE
    file.write_text(text.replace("PLACE", str(folder / "config.json")))
    assert Contents(tmp_path).of(folder) == before
    assert json.loads(file.read_text()).keys() >= {str(folder / "config.json")}


def test_seals_and_hidden_files_are_no_content(folder: Path, tmp_path: Path) -> None:
    store = Contents(tmp_path)
    before = store.of(folder)
    (folder / SEAL).write_text("{}")
    (folder / ".lock").touch()
    (folder / ".train").mkdir()
    (folder / ".train" / "checkpoint").touch()
    assert store.of(folder) == before


def test_a_card_of_ours_is_no_content_and_another_is(folder: Path, tmp_path: Path) -> None:
    store = Contents(tmp_path)
    before = store.of(folder)
    card = folder / "README.md"
    card.write_text(f"---\n{CARD_MARK}\ntags: []\n---\n")
    assert store.of(folder) == before
    card.write_text("# My model\n")
    assert store.of(folder) != before


def test_links_count_as_what_they_point_to(folder: Path, tmp_path: Path) -> None:
    store = Contents(tmp_path)
    before = store.of(folder)
    (folder / "parts").rename(tmp_path / "blobs")
    (folder / "parts").symlink_to(tmp_path / "blobs")
    assert store.of(folder) == before
    (tmp_path / "blobs" / "weights").write_bytes(b"\1" * 100)
    assert store.of(folder) != before
    (tmp_path / "blobs" / "loop").symlink_to(folder)
    store.of(folder)  # comes to an end


def test_a_path_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: cannot be read \(No such file or directory\)"):
        Contents(tmp_path).of(tmp_path / "nothing")
