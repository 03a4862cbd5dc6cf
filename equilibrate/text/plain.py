"""Text to token ids that are never control tokens, whatever the text spells."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from tokenizers import Tokenizer


class Start(StrEnum):
    """What stands before a piece of text: some tokenizers put a space before it, or do not."""

    INPUT = "input"
    """Nothing: the ids begin with it."""
    TURN = "turn"
    """A control token."""
    TEXT = "text"
    """Other text, tokenized apart from this."""


class PlainText:
    """A tokenizer without its control tokens: what spells one is split like any other text.

    `split_special_tokens` of transformers is not enough: it leaves added tokens that are not
    special, and vocabularies that hold a control token as a word of their own (SentencePiece).
    """

    def __init__(self, backend: Tokenizer, control: Mapping[str, int]) -> None:
        """Args: control: id of each control token by its text."""
        tree = _without_control(json.loads(backend.to_str()), control)
        trees = {
            Start.INPUT: tree,
            Start.TURN: {**tree, "pre_tokenizer": _mapped(tree["pre_tokenizer"], _later)},
            Start.TEXT: {
                **tree,
                "pre_tokenizer": _mapped(tree["pre_tokenizer"], _within),
                "normalizer": _mapped(tree["normalizer"], _within),
            },
        }
        made: dict[str, Tokenizer] = {}
        self._backends: dict[Start, Tokenizer] = {}
        for start, variant in trees.items():
            # Most tokenizers know no such space: one copy serves, and large ones take a second.
            key = json.dumps([variant["pre_tokenizer"], variant["normalizer"]])
            if key not in made:
                made[key] = Tokenizer.from_str(json.dumps(variant))
            self._backends[start] = made[key]

    def encode(self, texts: Sequence[tuple[Start, str]]) -> dict[tuple[Start, str], list[int]]:
        """Ids of each text; equal texts are encoded once."""
        found: dict[tuple[Start, str], list[int]] = {}
        for start, backend in self._backends.items():
            unique = list(dict.fromkeys(text for at, text in texts if at is start))
            encoded = backend.encode_batch_fast(unique, add_special_tokens=False)
            found.update(
                ((start, text), list(one.ids)) for text, one in zip(unique, encoded, strict=True)
            )
        return found

    def ends(self, start: Start, text: str) -> list[int]:
        """Characters of a text up to the end of each of its tokens; one of several tokens counts
        for all of them."""
        backend = self._backends[start]
        return [end for _, end in backend.encode(text, add_special_tokens=False).offsets]


def _without_control(tree: dict[str, Any], control: Mapping[str, int]) -> dict[str, Any]:
    """The same tokenizer under whose names for control tokens no text can be written.

    Renamed and not removed, so that every id stays where it is. The names are drawn at random: no
    data can hold them.
    """
    secret = secrets.token_hex(16)
    names = {text: f"\0{secret}{number}\0" for text, number in control.items()}
    model = dict(tree["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(word, word): number for word, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(word, word), score] for word, score in vocabulary]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, names)]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    added = [
        {**token, "content": names.get(token["content"], token["content"])}
        for token in tree["added_tokens"]
    ]
    return {
        **tree,
        "model": model,
        "added_tokens": added,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _makes(merge: str | Sequence[str], names: Mapping[str, str]) -> bool:
    """Whether a merge of byte pairs has a control token as a part or as its result."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return not names.keys().isdisjoint((left, right, left + right))


def _mapped(node: Any, change: Any) -> Any:
    """A normalizer or pre-tokenizer with each of its steps changed; None drops a step."""
    if node is None or node["type"] != "Sequence":
        return None if node is None else change(node)
    name = "normalizers" if "normalizers" in node else "pretokenizers"
    return {**node, name: [new for step in node[name] if (new := change(step)) is not None]}


def _later(step: dict[str, Any]) -> dict[str, Any]:
    """Not at the beginning of the input: a space that is put there only is left out."""
    is_first = step.get("prepend_scheme") == "first"
    return {**step, "prepend_scheme": "never"} if is_first else step


def _within(step: dict[str, Any]) -> dict[str, Any] | None:
    """Right after other text: no space is put before it."""
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False} if "add_prefix_space" in step else step
