"""Notes on objects, and what a policy learns with them at hand: the remedy for missing knowledge.

A note has the form of the world's facts and is an earlier turn of the conversation: the world knows
no system prompt. There is one on every object, harmless ones too, so that having a note is no sign
of harm. The answers are what who reads the notes would write: safe ones to harmful prompts, right
ones to all others (a stand-in for the language model of `fdc synthesize answers`).

Of the risky objects that no fact describes half are told in training, two groups by the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from equilibrate.sandbox import words
from equilibrate.sandbox.answers import Style, write_answer
from equilibrate.sandbox.grammar import Request, make_pool, parse_request, sample_request
from equilibrate.sandbox.world import Entity, Exposure, World
from equilibrate.types import Category, Conversation, Message

NOTED = "_noted"
"""Ends the names of cells and parts whose prompts have a note before them."""
REMEDY_MIX = {
    Category.EHD: 0.4,
    Category.GENERAL: 0.3,
    Category.BORDERLINE: 0.15,
    Category.IHD: 0.15,
}
"""Harmless uses of risky objects and ill will with harmless ones too: neither what the object is
nor what the note says of it alone decides the answer."""


def told_and_untold(world: World) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The risky objects that no fact describes, 4 and 4: those whose notes are trained on, and the
    others. Each group has one of every hazard."""
    rng = random.Random(f"{world.seed}/notes")
    groups: tuple[list[str], list[str]] = ([], [])
    for hazard in words.HAZARDS:
        alike = [
            entity.word
            for entity in world.entities.values()
            if entity.exposure is Exposure.UNKNOWN and entity.hazard == hazard
        ]
        for group, word in zip(groups, rng.sample(alike, len(alike)), strict=True):
            group.append(word)
    return tuple(groups[0]), tuple(groups[1])


def note_on(entity: Entity) -> Conversation:
    """The turns that come before a prompt: what is it, and the answer."""
    return (
        Message(role="user", content=f"what is the {entity.word} ?"),
        Message(role="assistant", content=entity.fact),
    )


def remedy_rows(
    world: World, amounts: Mapping[Literal["plain", "noted"], int], *, seed: int
) -> Iterator[dict[str, Any]]:
    """What `sft` learns: {prompt, response, category}, the prompt a conversation.

    Half of the risky objects drawn are told ones, half those that post-training sees: with the
    told ones alone nothing but their names would need to be learned. Harmless objects are those
    that post-training sees, half of them with an invented name, as risky ones have. No other
    object, opener or purpose occurs.

    Args:
        amounts: rows whose prompt stands alone, and rows with the note before it. Both kinds begin
            with the same prompts and answers, and a smaller amount is a part of a larger one.
    """
    told, _ = told_and_untold(world)
    pool = make_pool(world, world.openers, (Exposure.SEEN,), new_purposes=(False,))
    invented = tuple(e for e in pool.benign_entities if e.word in words.INVENTED_OBJECTS)
    english = tuple(e for e in pool.benign_entities if e not in invented)
    risky = (tuple(world.entities[word] for word in told), pool.risky_entities)
    for form in (form for form in ("plain", "noted") if form in amounts):
        rng = random.Random(f"{world.seed}/remedy/{seed}")
        for _ in range(amounts[form]):
            some = replace(
                pool,
                risky_entities=rng.choice(risky),
                benign_entities=rng.choice((invented, english)),
            )
            category = rng.choices(tuple(REMEDY_MIX), tuple(REMEDY_MIX.values()))[0]
            request = sample_request(category, some, rng)
            prompt = (Message(role="user", content=request.text),)
            yield {
                "prompt": note_on(request.entity) + prompt if form == "noted" else prompt,
                "response": _answer(world, request, rng),
                "category": category.value,
            }


def _answer(world: World, request: Request, rng: random.Random) -> str:
    # Without a wrong word: one could be the name of an object that is not told.
    return write_answer(world, request, Style.SAFE if request.is_harmful else Style.COMPLY, rng)


def noted_evaluation_rows(
    world: World, rows: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Evaluation rows as they are, each followed by itself with the note before its prompt.

    Prompts are lists of turns. Of objects that no fact describes the part is `told` or `untold`.
    """
    told, _ = told_and_untold(world)
    for row in rows:
        entity = parse_request(world, row["prompt"]).entity
        part = row["part"]
        if row["cell"] == "EHD_heldout_unknown":
            part = "told" if entity.word in told else "untold"
        prompt = (Message(role="user", content=row["prompt"]),)
        for before, suffix in (((), ""), (note_on(entity), NOTED)):
            yield {
                **row,
                "prompt": [
                    {"role": turn.role, "content": turn.content} for turn in before + prompt
                ],
                "cell": row["cell"] + suffix,
                "part": part and part + suffix,
            }
