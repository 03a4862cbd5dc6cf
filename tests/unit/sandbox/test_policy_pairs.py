from __future__ import annotations

from collections import Counter

import pytest

from equilibrate.sandbox.oracle import Oracle
from equilibrate.sandbox.policy_pairs import policy_pair_rows
from equilibrate.sandbox.world import build_world
from equilibrate.types import Category

WORLD = build_world(3)
AMOUNTS = {Category.GENERAL: 300, Category.EHD: 400, Category.IHD: 200}


def rows(amounts=AMOUNTS, *, mislabelled_fraction=0.0, seed=5):
    return list(
        policy_pair_rows(WORLD, amounts, mislabelled_fraction=mislabelled_fraction, seed=seed)
    )


@pytest.fixture(scope="module")
def judged():
    oracle = Oracle(WORLD)
    found = []
    for row in rows():
        preferred = row["preferred_response_id"]
        sides = [row[f"response_{i}"] for i in (preferred, 1 - preferred)]
        found.append((row, [oracle.judge(row["prompt"], text) for text in sides]))
    return found


def test_every_class_has_its_amount():
    assert Counter(row["category"] for row in rows()) == {"GENERAL": 300, "EHD": 400, "IHD": 200}


def test_the_same_seed_gives_the_same_rows_and_another_one_others():
    assert rows() == rows()
    assert rows() != rows(seed=6)


def test_a_smaller_amount_is_the_beginning_of_a_larger_one():
    assert rows({Category.EHD: 50}) == rows({Category.EHD: 80})[:50]


def share(values):
    values = list(values)
    return sum(values) / len(values)


def test_the_preferred_answer_is_the_harmless_one_but_for_the_noise(judged):
    harmful = [verdicts for row, verdicts in judged if row["category"] != "GENERAL"]
    # 600 rows, one in ten the wrong way round: three standard errors are 0.037
    assert share(not chosen.harmful for chosen, _ in harmful) == pytest.approx(0.9, abs=0.037)
    assert share(rejected.harmful for _, rejected in harmful) == pytest.approx(0.9, abs=0.037)


def test_on_harmless_prompts_it_is_the_more_helpful_one(judged):
    general = [verdicts for row, verdicts in judged if row["category"] == "GENERAL"]
    # Wrong slots are now and then right by chance, so a little more is lost than the noise.
    assert share(a.helpfulness > b.helpfulness for a, b in general) > 0.75


def test_labels_of_safety_and_helpfulness_follow_the_oracle_but_for_the_noise(judged):
    oracle = Oracle(WORLD)
    safe, better = [], []
    for row, _ in judged:
        verdicts = [oracle.judge(row["prompt"], row[f"response_{i}"]) for i in (0, 1)]
        safe += [row[f"is_response_{i}_safe"] is not verdicts[i].harmful for i in (0, 1)]
        gap = verdicts[1].helpfulness - verdicts[0].helpfulness
        better += [row["better_response_id"] == int(gap > 0)] if gap else []
    assert share(safe) == pytest.approx(0.9, abs=0.03)
    assert share(better) == pytest.approx(0.9, abs=0.03)


def test_mislabelled_prompts_are_harmless_and_answered_as_if_they_were_not():
    oracle = Oracle(WORLD)
    wrong = rows({Category.EHD: 400}, mislabelled_fraction=0.25)
    both = [
        any(oracle.judge(row["prompt"], row[f"response_{i}"]).harmful for i in (0, 1))
        for row in wrong
    ]
    # Of a harmful prompt one answer helps, so one of the two is harmful.
    assert share(both) == pytest.approx(0.75, abs=0.065)


def test_the_label_of_a_harmless_class_is_never_wrong():
    wrong = rows({Category.GENERAL: 50}, mislabelled_fraction=0.9)
    assert wrong == rows({Category.GENERAL: 50})
