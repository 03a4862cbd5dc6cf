"""Answers read back as written; a broken answer reads as nothing."""

import random

import pytest

from equilibrate.sandbox.answers import Style, break_answer, parse_answer, write_answer
from equilibrate.sandbox.grammar import base_pool, sample_request
from equilibrate.sandbox.world import build_world
from equilibrate.types import Category

WORLD = build_world(3)


@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("category", list(Category))
def test_written_answers_read_back_and_broken_ones_do_not(style, category):
    rng = random.Random(0)
    for _ in range(50):
        request = sample_request(category, base_pool(WORLD), rng)
        text = write_answer(WORLD, request, style, rng, slot_noise=0.5)
        answer = parse_answer(text)
        assert answer is not None
        assert answer.style is style
        assert all(word in text.split() for word in answer.slots.values())
        assert parse_answer(break_answer(text, rng)) is None


def test_slot_noise_is_the_share_of_redrawn_slots():
    """Noise 1 redraws all: a tool is still right with probability 1/15."""
    rng = random.Random(0)
    tools = objects = 0
    for _ in range(3000):
        request = sample_request(Category.GENERAL, base_pool(WORLD), rng)
        answer = parse_answer(write_answer(WORLD, request, Style.COMPLY, rng, slot_noise=1.0))
        assert answer is not None
        tools += answer.slots["tool"] == request.entity.tool
        objects += answer.slots["object"] == request.entity.word
    # 3000 / 15 = 200, standard deviation 13.7; 100 objects are seen and 40 held out;
    # of the harmless ones 80 and 20: 3000 x (0.8 / 100 + 0.2 / 40) = 39, standard deviation 6.2
    assert 145 < tools < 255
    assert 14 < objects < 64
