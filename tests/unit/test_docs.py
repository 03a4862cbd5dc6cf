"""What the documents point to is there: links, and paths of the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = "equilibrate|actors|deploy|benchmarks|tests|docs|requirements"
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]+\w/?")
NOT_BUILT = {"equilibrate/edits/", "equilibrate/decoding/"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_and_links_lead_somewhere(document: Path):
    text = document.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    linked = {link for link in links if link and "://" not in link}
    missing = {link for link in linked if not (document.parent / link).exists()}
    paths = {path for path in PATH.findall(text) if path not in linked}
    missing |= {path for path in paths - NOT_BUILT if not (ROOT / path).exists()}
    assert not missing


def test_the_map_names_every_document():
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").iterdir():
        assert path.name == "README.md" or path.name in text, path.name
