"""Splits are disjoint, labels are noisy at the stated rate, and one seed gives one set of rows."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from datasets import load_from_disk

from equilibrate.sandbox import data
from equilibrate.sandbox.answers import Style, parse_answer
from equilibrate.sandbox.grammar import parse_request
from equilibrate.sandbox.oracle import Oracle
from equilibrate.sandbox.world import Exposure, build_world

SIZES = data.Sizes(
    base_examples=6000,
    reward_pairs=1500,
    cost_pairs=1500,
    prompts_per_class=400,
    evaluation_per_cell=64,
)
WORLD = build_world(3)
ROWS = data.make_rows(WORLD, SIZES)
POST_TRAINING = ("preferences_reward", "preferences_cost", "prompts")


def _is_fact(row):
    return row["prompt"].startswith("what is") and "way to" not in row["prompt"]


def test_same_seed_same_rows_and_other_seed_other_rows():
    small = replace(SIZES, base_examples=50, reward_pairs=50, cost_pairs=50, prompts_per_class=20)
    assert data.make_rows(build_world(7), small) == data.make_rows(build_world(7), small)
    assert data.make_rows(build_world(7), small) != data.make_rows(build_world(8), small)


def test_no_evaluation_prompt_occurs_in_training():
    evaluation = {row["prompt"] for row in ROWS["evaluation"]}
    assert len(evaluation) == 7 * 64
    for name in ("base", *POST_TRAINING):
        assert evaluation.isdisjoint(row["prompt"] for row in ROWS[name])


def test_base_rows_leave_out_what_they_are_told_to():
    rows = list(data.base_rows(WORLD, 500, exclude=frozenset()))
    asked = frozenset(row["prompt"] for row in rows if not _is_fact(row))
    again = {row["prompt"] for row in data.base_rows(WORLD, 500, exclude=asked)}
    assert len(asked) > 300
    assert asked.isdisjoint(again)


def test_post_training_never_sees_heldout_openers_entities_or_purposes():
    for name in POST_TRAINING:
        for row in ROWS[name]:
            request = parse_request(WORLD, row["prompt"])
            assert request.opener in WORLD.openers
            assert request.entity.exposure is Exposure.SEEN
            assert request.purpose is None or not request.purpose.is_new
            assert request.category.value == row["category"]


@pytest.mark.parametrize("name", ["base", "preferences_reward", "preferences_cost"])
def test_wrong_objects_are_heldout_only_where_the_right_one_is(name):
    num_wrong = num_answers = 0
    for row in ROWS[name]:
        if _is_fact(row):
            continue
        asked = parse_request(WORLD, row["prompt"]).entity
        for key in row.keys() & {"response", "response_0", "response_1"}:
            num_answers += 1
            for word in set(row[key].split()) & set(WORLD.entities):
                named = WORLD.entities[word]
                num_wrong += named != asked
                assert (named.exposure is Exposure.SEEN) == (asked.exposure is Exposure.SEEN)
    # Half of the answers name an object; noise is 0.12, or 0.1 and 0.7.
    assert num_wrong > 0.05 * num_answers


def test_evaluation_cells_hold_what_their_names_say():
    cells = Counter(row["cell"] for row in ROWS["evaluation"])
    assert cells == dict.fromkeys(data.CELLS, 64)
    exposures = {}
    for row in ROWS["evaluation"]:
        request = parse_request(WORLD, row["prompt"])
        assert request.opener in WORLD.heldout_openers
        assert request.category.value == row["category"]
        assert request.entity.exposure.value == row["exposure"]
        exposures.setdefault(row["cell"], set()).add((row["exposure"], row["intent"]))
    assert {e for e, _ in exposures["EHD_seen"]} == {"seen"}
    assert {e for e, _ in exposures["EHD_heldout_known"]} == {"heldout_known"}
    assert {e for e, _ in exposures["EHD_heldout_unknown"]} == {"heldout_unknown"}
    assert {i for _, i in exposures["IHD"]} == {i for _, i in exposures["MHD"]} == {"seen", "new"}
    assert {e for e, _ in exposures["IHD"]} == {"seen", "heldout_known"}
    parts = Counter((row["part"], row["cell"], row["intent"]) for row in ROWS["evaluation"])
    named = {key: number for key, number in parts.items() if key[0]}
    assert named == {("IHD_seen", "IHD", "seen"): 32, ("IHD_new", "IHD", "new"): 32}


def test_unknown_entities_have_no_facts_and_no_tell_tale_styles():
    unknown = {e.word for e in WORLD.entities.values() if e.exposure is Exposure.UNKNOWN}
    styles = Counter()
    for row in ROWS["base"]:
        if _is_fact(row):
            assert unknown.isdisjoint(row["prompt"].split())
            continue
        request = parse_request(WORLD, row["prompt"])
        if row["category"] == "EHD" and request.entity.word in unknown:
            styles[parse_answer(row["response"]).style] += 1
    # Style shares of harmless prompts: 96 % comply, never a leak; standard deviation 1.6 points.
    assert styles[Style.COMPLY] / styles.total() > 0.88
    assert styles[Style.LEAK] == 0


def test_base_data_are_uncensored():
    """82 % comply + 4 % hedge + 2 % leak = 88 %, standard deviation 0.9 points at 1300 prompts."""
    oracle = Oracle(WORLD)
    harmful = [row for row in ROWS["base"] if row["category"] in ("IHD", "MHD")]
    rate = sum(oracle.judge(r["prompt"], r["response"]).harmful for r in harmful) / len(harmful)
    assert rate == pytest.approx(0.88, abs=0.035)


@pytest.mark.parametrize("name", ["preferences_reward", "preferences_cost"])
def test_labels_are_wrong_at_the_stated_rate(name):
    oracle = Oracle(WORLD)
    wrong, total = Counter(), Counter()
    for row in ROWS[name]:
        verdicts = [oracle.judge(row["prompt"], row[f"response_{i}"]) for i in (0, 1)]
        assert row["response_0"] != row["response_1"]
        gain = verdicts[1].helpfulness - verdicts[0].helpfulness
        harm = verdicts[1].harmful - verdicts[0].harmful
        if gain:
            total["better"] += 1
            wrong["better"] += row["better_response_id"] != int(gain > 0)
        if harm:
            total["safer"] += 1
            wrong["safer"] += row["safer_response_id"] != int(harm < 0)
        for i, verdict in enumerate(verdicts):
            total["sign"] += 1
            wrong["sign"] += row[f"is_response_{i}_safe"] == verdict.harmful
    for label, count in total.items():
        # Four standard deviations of a binomial share of 0.1.
        assert wrong[label] / count == pytest.approx(0.1, abs=4 * (0.09 / count) ** 0.5), label


def test_ties_in_harm_are_a_coin_toss():
    """On harmless prompts no answer is safer than another: worrying must not pay."""
    oracle = Oracle(WORLD)
    worry_wins = total = 0
    for row in ROWS["preferences_cost"]:
        verdicts = [oracle.judge(row["prompt"], row[f"response_{i}"]) for i in (0, 1)]
        is_worry = [v.style is Style.SAFE for v in verdicts]
        if row["category"] in ("GENERAL", "BORDERLINE") and sum(is_worry) == 1:
            total += 1
            worry_wins += is_worry[row["safer_response_id"]]
    assert worry_wins / total == pytest.approx(0.5, abs=4 * (0.25 / total) ** 0.5)


def test_broken_answers_occur_in_reward_pairs_only():
    def broken_share(name):
        rows = ROWS[name]
        texts = [row[f"response_{i}"] for row in rows for i in (0, 1)]
        return sum(parse_answer(text) is None for text in texts) / len(texts)

    # 5 % of 3000: standard deviation 0.4 points.
    assert broken_share("preferences_reward") == pytest.approx(0.05, abs=0.016)
    assert broken_share("preferences_cost") == 0


def test_written_folder_reads_back(tmp_path):
    small = replace(SIZES, base_examples=30, reward_pairs=20, cost_pairs=20, prompts_per_class=10)
    world = data.write_world(tmp_path, seed=3, sizes=small)
    assert world == WORLD
    rows = data.make_rows(WORLD, small)
    for name, expected in rows.items():
        assert load_from_disk(str(tmp_path / name)).to_list() == expected
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["rows"]["evaluation"] == 7 * 64
    assert manifest["sizes"]["reward_pairs"] == 20


def test_noise_flips_either_label():
    rng = random.Random(0)
    flips = sum(data._noisy(True, rng) is False for _ in range(4000))
    # 400 expected, standard deviation 19.
    assert 320 < flips < 480
