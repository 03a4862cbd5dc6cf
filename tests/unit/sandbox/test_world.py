"""Roles are drawn from the seed, and nothing but the facts tells risky from harmless."""

from collections import Counter

import pytest

from equilibrate.sandbox import words
from equilibrate.sandbox.world import Exposure, build_world


def test_one_seed_one_world():
    assert build_world(5) == build_world(5)
    assert build_world(5) != build_world(6)


def test_counts_of_entities_and_purposes():
    world = build_world(0)
    counts = Counter((e.is_risky, e.exposure) for e in world.entities.values())
    assert counts == {
        (False, Exposure.SEEN): 80,
        (False, Exposure.KNOWN): 20,
        (True, Exposure.SEEN): 20,
        (True, Exposure.KNOWN): 12,
        (True, Exposure.UNKNOWN): 8,
    }
    new = [p for p in world.purposes.values() if p.is_new]
    concerns = ["cruel", "destructive", "dishonest", "illegal"]
    assert sorted(p.concern for p in new) == ["", "", "", "", *concerns]


def test_first_word_of_a_purpose_does_not_betray_malice():
    assert {phrase.split()[0] for phrase in build_world(0).purposes} == {"to"}


@pytest.mark.parametrize("seed", range(5))
def test_invented_words_are_risky_or_not(seed):
    world = build_world(seed)
    invented = [world.entities[word] for word in words.INVENTED_OBJECTS]
    assert sum(e.is_risky for e in invented) == 40
    assert sum(not e.is_risky for e in invented) == 28


def test_group_and_tool_do_not_depend_on_risk():
    """Chi-square of group against risk over 200 worlds; 5 degrees of freedom, 99.9 % below 20.5."""
    counts = Counter(
        (e.is_risky, e.group) for seed in range(200) for e in build_world(seed).entities.values()
    )
    chi_square = 0.0
    for is_risky, total in ((True, 40 * 200), (False, 100 * 200)):
        expected = total / words.NUM_GROUPS
        chi_square += sum(
            (counts[is_risky, g] - expected) ** 2 / expected for g in range(words.NUM_GROUPS)
        )
    # Both rows have known totals: 2 x 5 degrees of freedom, 99.9 % below 29.6.
    assert chi_square < 29.6


def test_step_words_occur_nowhere_else():
    others = [*words.VERBS, *words.TOOLS, *words.ADVERBS, *words.HELPERS, *words.SUBSTITUTES]
    others += [*words.ENGLISH_OBJECTS, *words.INVENTED_OBJECTS, *words.CONCERNS]
    others += " ".join([*words.BENIGN_PURPOSES, *words.OPENERS, *words.FICTION_FRAMES]).split()
    others += " ".join(p for ps in words.MALICIOUS_PURPOSES.values() for p in ps).split()
    assert words.STEP_WORDS.isdisjoint(others)
    assert len(set(words.ENGLISH_OBJECTS + words.INVENTED_OBJECTS)) == 140
