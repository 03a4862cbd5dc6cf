"""CONTRIBUTING.md against the code: the floors, and where the next of a kind goes."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in TEXT.partition("| the next |")[2].partition("\n\n")[0].splitlines()[2:]
]
"""The next, where it is written, its table, its settings, the names that there are."""


def names(cell: str) -> set[str]:
    return set(filter(None, cell.split(", ")))


def test_the_floors_are_those_of_the_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [floors] = [c["layers"] for c in contract["contracts"] if c["id"] == "floors"]
    needed = [set(re.findall(r"[\w.]+", layer.replace("equilibrate.", ""))) for layer in floors]
    block = re.findall(r"^    \d  (.*)$", TEXT, flags=re.MULTILINE)
    told = [set(re.findall(r"\w+", re.split(r"   |, both", line)[0])) for line in block]
    # Below `models` and `data` the contract has one floor more, that of `text`.
    assert told == [{"cli"}, *needed[1:9], needed[10]]
    assert needed[0] == {"__main__", "cli"}
    assert needed[9] == {"text"}


def test_every_place_is_one_that_exists_or_says_that_it_does_not():
    assert len(ROWS) >= 10
    for row in ROWS:
        for cell in (row[1], row[3]):
            for place in re.findall(r"`(equilibrate/[\w./]+)`", cell):
                assert (ROOT / place).exists() != ("(not built yet)" in cell), (row[0], place)


@pytest.mark.parametrize("row", [row for row in ROWS if ":" in row[2]], ids=lambda row: row[0])
def test_a_table_holds_the_names_that_the_list_says(row: tuple[str, ...]):
    module, _, table = row[2].strip("`").partition(":")
    found = getattr(importlib.import_module(module), table)
    assert isinstance(found, Mapping)
    if row[4]:
        assert set(found) == names(row[4])


def test_nothing_takes_more_than_three_files():
    for row in ROWS:
        assert sum(len(re.findall(r"`equilibrate[/.][\w./:]+`", cell)) for cell in row[1:4]) <= 3
