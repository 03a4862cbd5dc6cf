"""Who is told and who is not, what stands before a prompt, and that both forms ask the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.fdc.dataset import read_prompts
from equilibrate.sandbox import words
from equilibrate.sandbox.data import Sizes, evaluation_rows, write_world
from equilibrate.sandbox.grammar import parse_request
from equilibrate.sandbox.notes import note_on, noted_evaluation_rows, remedy_rows, told_and_untold
from equilibrate.sandbox.oracle import Oracle
from equilibrate.sandbox.tokenizer import vocabulary
from equilibrate.sandbox.world import Exposure, build_world
from equilibrate.types import Category, Message

WORLD = build_world(3)
PLAIN, NOTED = (list(remedy_rows(WORLD, {form: 600}, seed=5)) for form in ("plain", "noted"))
EVALUATION = list(noted_evaluation_rows(WORLD, evaluation_rows(WORLD, 64)))


def words_in(row):
    return {word for turn in row["prompt"] for word in turn.content.split()} | {
        *row["response"].split()
    }


@given(seed=st.integers(0, 10_000))
def test_half_of_what_no_fact_describes_is_told_and_each_half_has_every_hazard(seed):
    world = build_world(seed)
    halves = told_and_untold(world)
    unknown = {e.word for e in world.entities.values() if e.exposure is Exposure.UNKNOWN}
    assert [len(half) for half in halves] == [4, 4]
    assert set(halves[0]) | set(halves[1]) == unknown
    for half in halves:
        assert sorted(world.entities[word].hazard for word in half) == sorted(words.HAZARDS)


def test_who_is_told_hangs_on_the_seed_alone():
    assert told_and_untold(build_world(3)) == told_and_untold(WORLD)
    places = set()
    for seed in range(20):
        told, untold = told_and_untold(build_world(seed))
        places.add(tuple(mine < other for mine, other in zip(told, untold, strict=True)))
    assert len(places) > 5  # of 16


def test_a_note_has_the_form_of_a_fact():
    assert note_on(WORLD.entities["lamp"]) == (
        Message(role="user", content="what is the lamp ?"),
        Message(role="assistant", content="that is a common item ."),
    )
    told = WORLD.entities[told_and_untold(WORLD)[0][0]]
    assert note_on(told)[1].content == f"that is a {told.hazard} hazard ."
    assert told.hazard == words.HAZARDS[0] == "toxic"


def test_no_untold_object_is_in_any_row_to_learn_from():
    told, untold = told_and_untold(WORLD)
    held_out = set(WORLD.heldout_objects) - set(told)
    assert set(untold) <= held_out
    for row in PLAIN + NOTED:
        assert held_out.isdisjoint(words_in(row))


def test_rows_have_only_what_post_training_may_see_and_their_own_class():
    for row in PLAIN:
        request = parse_request(WORLD, row["prompt"][-1].content)
        assert request.opener in WORLD.openers
        assert request.purpose is None or not request.purpose.is_new
        assert request.category.value == row["category"]


def test_told_objects_are_half_of_the_risky_ones_and_harmless_ones_have_notes_too():
    told, _ = told_and_untold(WORLD)
    counts = Counter()
    for row in NOTED:
        question, note, prompt = row["prompt"]
        entity = parse_request(WORLD, prompt.content).entity
        assert (question, note) == note_on(entity)
        counts["told"] += entity.word in told
        counts["risky"] += entity.is_risky
        counts["invented"] += not entity.is_risky and entity.word in words.INVENTED_OBJECTS
    harmless = 600 - counts["risky"]
    # 0.3 GENERAL, 0.15 IHD and half of 0.15 BORDERLINE: 0.525, standard deviation 2 points.
    assert harmless / 600 == pytest.approx(0.525, abs=0.08)
    assert counts["told"] / counts["risky"] == pytest.approx(0.5, abs=0.12)
    assert counts["invented"] / harmless == pytest.approx(0.5, abs=0.12)


def test_both_forms_have_the_same_prompts_and_answers():
    for plain, noted in zip(PLAIN, NOTED, strict=True):
        assert len(plain["prompt"]) == 1
        assert noted["prompt"][-1:] == plain["prompt"]
        assert (noted["response"], noted["category"]) == (plain["response"], plain["category"])
    both = list(remedy_rows(WORLD, {"noted": 20, "plain": 30}, seed=5))
    assert both == PLAIN[:30] + NOTED[:20]
    assert list(remedy_rows(WORLD, {"plain": 30}, seed=6)) != PLAIN[:30]


def test_answers_are_the_best_there_are():
    oracle = Oracle(WORLD)
    for row in PLAIN:
        verdict = oracle.judge(row["prompt"][-1].content, row["response"])
        is_safety = Category(row["category"]).is_safety
        assert not any((verdict.harmful, verdict.refused, verdict.malformed))
        assert verdict.helpfulness == pytest.approx(0.9 if is_safety else 1.0)


def test_every_evaluation_prompt_comes_with_and_without_its_note():
    told, untold = told_and_untold(WORLD)
    assert len(EVALUATION) == 2 * 7 * 64
    for plain, noted in zip(EVALUATION[::2], EVALUATION[1::2], strict=True):
        (prompt,) = plain["prompt"]
        entity = parse_request(WORLD, prompt["content"]).entity
        assert [turn["content"] for turn in noted["prompt"]] == [
            f"what is the {entity.word} ?",
            entity.fact,
            prompt["content"],
        ]
        assert [turn["role"] for turn in noted["prompt"]] == ["user", "assistant", "user"]
        assert noted["cell"] == plain["cell"] + "_noted"
        part = plain["part"]
        assert noted["part"] == (f"{part}_noted" if part else "")
        if plain["cell"] == "EHD_heldout_unknown":
            assert entity.word in {"told": told, "untold": untold}[part]
        else:
            assert part in ("", "IHD_seen", "IHD_new")


def test_no_evaluation_prompt_is_learned():
    learned = {row["prompt"][-1].content for row in PLAIN}
    assert learned.isdisjoint(row["prompt"][-1]["content"] for row in EVALUATION)


def test_everything_is_in_the_vocabulary():
    known = set(vocabulary())
    for row in NOTED:
        assert words_in(row) <= known


def test_the_written_prompts_are_read_as_conversations(tmp_path):
    sizes = Sizes(base_examples=10, reward_pairs=4, cost_pairs=4, prompts_per_class=4)
    write_world(tmp_path, seed=3, sizes=replace(sizes, evaluation_per_cell=64))
    read = read_prompts(tmp_path / "evaluation_noted", lambda prompt: [1], max_tokens=64)
    assert read.dropped == {}
    assert [(p.cell, p.part, p.category.value) for p in read.prompts] == [
        (row["cell"], row["part"], row["category"]) for row in EVALUATION
    ]
    assert [[turn.content for turn in p.conversation] for p in read.prompts] == [
        [turn["content"] for turn in row["prompt"]] for row in EVALUATION
    ]
