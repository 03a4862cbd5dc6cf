from __future__ import annotations

import pytest

from equilibrate.data.leakage import check_disjoint
from equilibrate.errors import DataError
from equilibrate.types import Category, Prompt


def prompt(prompt_id: str, text: str) -> Prompt:
    return Prompt(prompt_id=prompt_id, text=text, token_ids=(1,), category=Category.GENERAL)


def test_disjoint_prompts_pass():
    check_disjoint([prompt("t1", "bake bread")], [prompt("e1", "bake cakes")])
    check_disjoint([], [prompt("e1", "bake cakes")])


def test_a_leak_is_named_whatever_its_case_and_spacing():
    train = [prompt("t1", "bake bread"), prompt("t2", "Build  a kite")]
    evaluation = [prompt("e1", "fly a kite"), prompt("e2", "build a KITE\n")]
    with pytest.raises(DataError, match=r"'e2'.*'t2'.*these 1 "):
        check_disjoint(train, evaluation)
