"""Evaluation prompts never train."""

from __future__ import annotations

from collections.abc import Iterable

from equilibrate.errors import DataError
from equilibrate.types import Prompt


def check_disjoint(train_prompts: Iterable[Prompt], eval_prompts: Iterable[Prompt]) -> None:
    """Refuse an evaluation prompt that training also sees, compared without case and spacing.

    Raises: DataError with the first such prompt and their number.
    """
    seen = {_normalised(prompt.text): prompt.prompt_id for prompt in train_prompts}
    leaked = [prompt for prompt in eval_prompts if _normalised(prompt.text) in seen]
    if leaked:
        first = leaked[0]
        raise DataError(
            f"evaluation prompt {first.prompt_id!r} ({first.text[:80]!r}) must not be in the "
            f"training prompts, where it is {seen[_normalised(first.text)]!r}; remove these "
            f"{len(leaked)} from one of the two files"
        )


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())
