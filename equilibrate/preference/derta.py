"""Decoupled refusal training: to turn back at any point of a harmful answer.

    L = - log pi(r | q, first k words of r^)  -  sum over t of log pi(refusal token | q, r^_<t)

of a safe answer r and a harmful one r^ to the same prompt q, k uniform over the words of r^.
Both terms, and ordinary answers beside them, are cross entropies: what is special is the data.
Source: Yuan et al. 2024 (arXiv 2407.09121), eq. 2.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from equilibrate.data.answers import Answer, pairs
from equilibrate.data.columns import Columns


def derta_answers(columns: Columns, *, refusal: str, seed: int) -> list[Answer]:
    """Three kinds of rows from preference pairs.

    A pair of a safe, chosen answer and a harmful, rejected one gives the safe answer after a
    beginning of the harmful one, and the harmful one with the refusal as the target of every token.
    Of any other pair the chosen answer is learned as it is.

    Args:
        refusal: text whose first token opens a refusal.
        seed: of the lengths of the beginnings.
    """
    rng = random.Random(f"{seed}/derta")
    both = pairs(columns, by="preference", needs_safety=True)
    answers = []
    for chosen, rejected in zip(both[0::2], both[1::2], strict=True):
        if not chosen.is_safe or rejected.is_safe:
            answers.append(chosen)
            continue
        begun = _beginning(rejected.response, rng)
        answers += [
            replace(chosen, given=begun, response=_after(begun, chosen.response)),
            # Every token is to become the refusal, so this side is to be learned too.
            replace(rejected, target=refusal, side=1),
        ]
    return answers


def _beginning(response: str, rng: random.Random) -> str:
    """The first k words exactly as they stand in the response, line breaks and spacing too."""
    ends = [0, *(word.end() for word in re.finditer(r"\S+", response))]
    return response[: ends[rng.randint(0, len(ends) - 1)]]


def _after(begun: str, response: str) -> str:
    # A tokenizer that knows spaces must see the one between the two.
    return f" {response}" if begun else response
