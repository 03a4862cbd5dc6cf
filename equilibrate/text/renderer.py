"""Prompt text to the token ids that the policy sees, and response ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

PLACEHOLDER = "equilibrate-content"


class TextCodec:
    """The tokenizer and chat template of one model folder."""

    def __init__(self, model_folder: str | Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(str(model_folder), trust_remote_code=False)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of one user turn, up to where the response begins.

        Text that spells a control token stays text: a prompt cannot end its own turn.
        """
        tokenizer = self._tokenizer
        if tokenizer.chat_template is None:
            start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            return start + self._plain(text)
        if not any(token in text for token in tokenizer.all_special_tokens):
            return self._special(self._render(text))
        before, after = self._render(PLACEHOLDER).split(PLACEHOLDER)
        return self._special(before) + self._plain(text) + self._special(after)

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text.strip()

    def _render(self, content: str) -> str:
        messages = [{"role": "user", "content": content}]
        rendered: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def _special(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids
