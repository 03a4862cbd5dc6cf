from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset

from equilibrate.errors import DataError
from equilibrate.learning.ptx import PtxData
from equilibrate.sandbox.tokenizer import EOS, build_tokenizer
from equilibrate.text.renderer import Renderer

WORD = "hazard"
"""A word of the built-in world."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return folder


def make(folder: Path, tokenizer: Path, rows: list[tuple[str, str]], max_length: int) -> PtxData:
    prompts, responses = (list(column) for column in zip(*rows, strict=True))
    Dataset.from_dict({"prompt": prompts, "response": responses}).save_to_disk(folder)
    return PtxData(folder, Renderer(tokenizer), max_length)


def test_only_responses_are_learned(tmp_path: Path, tokenizer: Path) -> None:
    # <bos> what is <sep> | a common hazard <eos>
    data = make(tmp_path / "data", tokenizer, [("what is", "a common hazard")], 64)
    token_ids, mask = data.draw(3, seed=0)
    assert mask.tolist() == [[False] * 4 + [True] * 4] * 3
    words = build_tokenizer().convert_ids_to_tokens(token_ids[0][mask[0]].tolist())
    assert words == ["a", "common", WORD, EOS]


def test_of_a_row_without_prompt_the_whole_text_is_learned(tmp_path: Path, tokenizer: Path) -> None:
    data = make(tmp_path / "data", tokenizer, [("", "a common hazard")], 64)
    _, mask = data.draw(1, seed=0)
    # <bos> <sep> | a common hazard <eos>
    assert mask.tolist() == [[False] * 2 + [True] * 4]


def test_the_first_token_is_never_learned(tmp_path: Path, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    plain = build_tokenizer()
    plain.chat_template = None
    folder = tmp_path_factory.mktemp("plain")
    plain.save_pretrained(folder)
    _, mask = make(tmp_path / "data", folder, [("", "a common hazard")], 64).draw(1, seed=0)
    assert mask.tolist() == [[False, True, True, True]]


def test_rows_cut_before_their_response_are_not_drawn(tmp_path: Path, tokenizer: Path) -> None:
    long = " ".join([WORD] * 20)
    data = make(tmp_path / "data", tokenizer, [(long, "a"), (WORD, "a")], 10)
    _, mask = data.draw(50, seed=0)
    assert mask.any(1).all()
    with pytest.raises(DataError, match=r"shortest prompt \(22 tokens\) must leave room"):
        make(tmp_path / "long", tokenizer, [(long, "a")], 10)
