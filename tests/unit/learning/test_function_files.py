"""Files of reward functions: what stands beside them, and what they are called."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from equilibrate.errors import DataError
from equilibrate.learning.sources import TextScorer, check_source
from equilibrate.types import Message
from tests.fakes import make_prompt, make_rollout


def test_a_file_beside_a_function_is_not_found_and_told_so(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").touch()
    (tmp_path / "mine.py").write_text("import helpers\nf = len")
    with pytest.raises(DataError, match=r"helpers stands beside it, .* install both as a package"):
        check_source(f"{tmp_path}/mine.py:f")
    (tmp_path / "mine.py").write_text("import no_helpers\nf = len")
    with pytest.raises(DataError, match="No module named 'no_helpers'") as refused:
        check_source(f"{tmp_path}/mine.py:f")
    assert "stands beside" not in str(refused.value)


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for folder, score in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(
            "from dataclasses import dataclass\n@dataclass\nclass One:\n    value: int = 0\n"
            f"def f(asked): return [One({score}).value for _ in asked]"
        )
    scorers = [TextScorer(f"{tmp_path}/{folder}/mine.py:f", seconds=9.0) for folder in "ab"]
    one = [replace(make_rollout(make_prompt()), messages=(Message(role="user", content="p"),))]
    assert [scorer.score(one, lambda ids: "said") for scorer in scorers] == [[1.0], [2.0]]
    assert len({name for name in sys.modules if name.startswith("equilibrate_source_mine_")}) >= 2
