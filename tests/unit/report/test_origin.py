"""Where numbers come from, as far as it can be known."""

from __future__ import annotations

import subprocess
from pathlib import Path

from equilibrate.report.origin import commit


def git(tree: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(tree), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_named_and_marked_where_the_code_differs(tmp_path: Path):
    code, notes = tmp_path / "equilibrate" / "code.py", tmp_path / "notes.md"
    code.parent.mkdir()
    for file in (code, notes):
        file.write_text("one\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "First")
    head = git(tmp_path, "rev-parse", "HEAD")
    notes.write_text("two\n")  # what is not code gives no other numbers
    assert commit(tmp_path) == head
    code.write_text("two\n")
    assert commit(tmp_path) == f"{head}+"


def test_a_folder_that_is_no_checkout_has_no_commit(tmp_path: Path):
    assert commit(tmp_path) is None
