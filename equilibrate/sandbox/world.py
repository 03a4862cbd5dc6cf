"""One world: who is risky, what fits what, what training may see. All follows from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from equilibrate.sandbox import words


class Exposure(StrEnum):
    """What training has shown of an entity. The base data mention all of them."""

    SEEN = "seen"
    """In post-training prompts and pairs, with a fact in the base data."""
    KNOWN = "heldout_known"
    """Never in post-training; the base data state what it is."""
    UNKNOWN = "heldout_unknown"
    """Never in post-training and without a fact: nothing says that it is risky."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """An object that prompts ask about."""

    word: str
    hazard: str
    """Kind of risk; empty if harmless."""
    group: int
    """Drawn without a look at the risk, or answers would reveal the risk of unknown entities."""
    tool: str
    exposure: Exposure

    @property
    def is_risky(self) -> bool:
        return self.hazard != ""

    @property
    def fact(self) -> str:
        """What is said of it, in facts and in notes."""
        return f"that is a {self.hazard} hazard ." if self.is_risky else "that is a common item ."


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What the asker wants it for."""

    phrase: str
    concern: str
    """What is wrong with it; empty if harmless."""
    is_new: bool
    """Never in post-training; the base data state what it is."""

    @property
    def is_malicious(self) -> bool:
        return self.concern != ""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The roles of all words. Two worlds of one seed are equal."""

    seed: int
    entities: Mapping[str, Entity]
    seen_objects: tuple[str, ...]
    heldout_objects: tuple[str, ...]
    purposes: Mapping[str, Purpose]
    openers: tuple[str, ...]
    heldout_openers: tuple[str, ...]
    first_steps: Mapping[str, str]
    """verb -> word"""
    second_steps: Mapping[tuple[str, int], str]
    """(verb, entity group) -> word"""
    adverbs: tuple[str, ...]
    """entity group -> word"""
    helpers: Mapping[str, str]
    """concern -> word"""
    substitutes: Mapping[str, str]
    """verb -> word"""


def build_world(seed: int) -> World:
    """The world of a seed: 100 harmless and 40 risky entities, 16 harmless purposes, 12 malicious.

    Of the risky entities 20 are seen, 12 held out with facts, 8 held out without; of the harmless
    ones 80 and 20 (all with facts). One malicious purpose of each concern and four harmless
    ones are new.
    """
    rng = random.Random(f"{seed}/world")
    openers = _shuffled(words.OPENERS, rng)
    num_seen = len(openers) - words.NUM_HELDOUT_OPENERS
    entities = _draw_entities(rng)
    return World(
        seed=seed,
        entities={entity.word: entity for entity in entities},
        seen_objects=tuple(e.word for e in entities if e.exposure is Exposure.SEEN),
        heldout_objects=tuple(e.word for e in entities if e.exposure is not Exposure.SEEN),
        purposes={purpose.phrase: purpose for purpose in _draw_purposes(rng)},
        openers=tuple(openers[:num_seen]),
        heldout_openers=tuple(openers[num_seen:]),
        first_steps=dict(zip(words.VERBS, _shuffled(words.FIRST_STEPS, rng), strict=True)),
        second_steps={
            (verb, group): rng.choice(words.SECOND_STEPS)
            for verb in words.VERBS
            for group in range(words.NUM_GROUPS)
        },
        adverbs=tuple(_shuffled(words.ADVERBS, rng)),
        helpers=dict(zip(words.CONCERNS, _shuffled(words.HELPERS, rng), strict=True)),
        substitutes=dict(zip(words.VERBS, _shuffled(words.SUBSTITUTES, rng), strict=True)),
    )


def _draw_entities(rng: random.Random) -> list[Entity]:
    invented = _shuffled(words.INVENTED_OBJECTS, rng)
    risky = invented[words.NUM_BENIGN_INVENTED :]
    benign = _shuffled([*words.ENGLISH_OBJECTS, *invented[: words.NUM_BENIGN_INVENTED]], rng)
    exposures = dict.fromkeys(risky[:20] + benign[:80], Exposure.SEEN)
    exposures |= dict.fromkeys(risky[20:32] + benign[80:], Exposure.KNOWN)
    exposures |= dict.fromkeys(risky[32:], Exposure.UNKNOWN)
    hazards = {word: words.HAZARDS[i % len(words.HAZARDS)] for i, word in enumerate(risky)}
    return [
        Entity(
            word=word,
            hazard=hazards.get(word, ""),
            group=rng.randrange(words.NUM_GROUPS),
            tool=rng.choice(words.TOOLS),
            exposure=exposures[word],
        )
        for word in sorted(exposures)
    ]


def _draw_purposes(rng: random.Random) -> list[Purpose]:
    new_benign = set(rng.sample(words.BENIGN_PURPOSES, words.NUM_HELDOUT_BENIGN_PURPOSES))
    purposes = [
        Purpose(phrase=phrase, concern="", is_new=phrase in new_benign)
        for phrase in words.BENIGN_PURPOSES
    ]
    for concern, phrases in words.MALICIOUS_PURPOSES.items():
        new = rng.choice(phrases)
        purposes += [Purpose(phrase=p, concern=concern, is_new=p == new) for p in phrases]
    return purposes


def _shuffled(items: tuple[str, ...] | list[str], rng: random.Random) -> list[str]:
    return rng.sample(list(items), len(items))
