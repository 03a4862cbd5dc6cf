"""From files that people have to what an objective learns of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.inputs import plain
from equilibrate.errors import DataError
from equilibrate.offline.labelled import (
    chosen_columns,
    labelled_answers,
    naming,
    readable_columns,
    require_pairs,
)
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer
from equilibrate.types import Category

REAL = Path(__file__).parents[4] / "shared" / "data" / "real"


def config(objective: str, **data: Any) -> FitConfig:
    data = {"policy": "p", "train": "t", "reward": "r", "cost": "c"} | data
    return parse_settings(FitConfig, {"data": data, "objective": {"type": objective}})


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pku(first: bool, other: bool, better: int, safer: int) -> dict[str, Any]:
    return {"prompt": "p", "response_0": "a", "response_1": "b", "is_response_0_safe": first,
            "is_response_1_safe": other, "better_response_id": better,
            "safer_response_id": safer}  # fmt: skip


PKU = [pku(True, True, 1, 0), pku(False, False, 1, 0), pku(False, True, 0, 1)]


def learned(settings: FitConfig, path: Path) -> tuple[list[str], list[str]]:
    """First answers of the examples, and what was said."""
    said: list[str] = []
    columns = readable_columns(settings, *plain(path), None, said.append)
    objective = OBJECTIVES[settings.objective.type]
    answers = objective.view(columns, settings.objective, 0)
    firsts = [answer.response for answer in answers[:: objective.answers_per_example]]
    return firsts, said


@pytest.mark.parametrize(
    ("objective", "prefer", "firsts"),
    [
        ("dpo", "safe_first", ["b", "b"]),
        ("dpo", "helpful", ["b", "b", "a"]),
        ("dpo", "safer", ["a", "a", "b"]),
        ("sft", "safe_first", ["b", "b"]),
        # By helpfulness or harm, whatever a policy is to prefer; of harm the worse stands first.
        ("reward", "safe_first", ["b", "b", "a"]),
        ("bfpo", "safe_first", ["b", "b", "a"]),
        ("cost", "safe_first", ["b", "b", "a"]),
    ],
)
def test_what_is_learned_of_pku(
    tmp_path: Path, objective: str, prefer: str, firsts: list[str]
) -> None:
    file = write(tmp_path / "pku.jsonl", *PKU)
    found, said = learned(config(objective, prefer=prefer), file)
    assert found == firsts
    left_out = f"{file}: 1 rows left out: both answers are unsafe"
    assert (left_out in said) == (prefer == "safe_first" and objective in ("dpo", "sft"))
    assert f"{file}: names no classes of ours; all rows count as GENERAL" in said


def test_a_safe_answer_is_learned_after_the_harmful_one_by_derta(tmp_path: Path) -> None:
    file = write(tmp_path / "pku.jsonl", *PKU)
    settings = config("derta")
    columns = readable_columns(settings, *plain(file), None)
    answers = OBJECTIVES["derta"].view(columns, settings.objective, 0)
    assert [answer.is_safe for answer in answers] == [True, True, False]


def test_unsafe_answers_are_not_demonstrated(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": name, "category": "{'x': True}", "is_safe": is_safe}
            for name, is_safe in (("a", "True"), ("b", "False"))]  # fmt: skip
    file = write(tmp_path / "beavertails.jsonl", *rows)
    assert learned(config("sft"), file)[0] == ["a"]
    assert learned(config("sft", prefer="helpful"), file)[0] == ["a", "b"]


def test_ties_are_left_out_and_not_rejected(tmp_path: Path) -> None:
    arena = {"prompt": '["p"]', "response_a": '["a"]', "response_b": '["b"]',
             "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}  # fmt: skip
    tie = arena | {"winner_model_a": 0, "winner_tie": 1}
    file = write(tmp_path / "arena.jsonl", arena, tie)
    found, said = learned(config("reward"), file)
    assert found == ["a"]
    assert f"{file}: 1 rows left out: neither answer is said to be the better one" in said


def test_a_file_that_teaches_nothing_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "pku.jsonl", pku(False, False, 1, 0))
    with pytest.raises(DataError, match=r"no row teaches dpo .*both answers are unsafe.*prefer"):
        readable_columns(config("dpo"), *plain(file), None)


def test_conversations_and_mapped_columns_reach_the_tokens(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    turns = [("human", "how do i clean lamp ?"), ("gpt", "clean it ."), ("human", "how ?")]
    row = {"turns of it": [{"from": who, "value": said} for who, said in turns],
           "best": "i clean it .", "worst": "how ?"}  # fmt: skip
    file = write(tmp_path / "rows.jsonl", row)
    columns = {"prompt": "turns of it", "chosen": "best", "rejected": "worst"}
    settings = config("dpo", columns=columns)
    table = labelled_answers(
        settings, readable_columns(settings, *plain(file), None), tmp_path / "policy"
    )
    assert len(table) == 1
    whole = tokenizer.decode(table.sequences.flat[: table.sequences.prompt_lengths[0]])
    said = [word for word in whole.split() if word in ("lamp", "clean", "how")]
    assert said == ["how", "clean", "lamp", "clean", "how"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data sets are not here ({REAL})")
@pytest.mark.parametrize(
    ("objective", "name", "count"),
    [
        ("dpo", "pku_current_500.jsonl", 163),
        ("sft", "pku_current_500.jsonl", 163),
        ("reward", "pku_current_500.jsonl", 334),
        ("cost", "pku_v0_pairs_rebuilt.jsonl", 3541),
        ("reward", "hh_helpful_test_relabelled.jsonl", 1204),
        ("sft", "beavertails_30k_test.csv", 862),
        ("reward", "arena_pref_500.jsonl", 191),
        ("dpo", "dpo_en_demo.json", 203),
        ("dpo", "cst_system_prompts.json", 1312),
        ("sft", "alpaca_en_demo.json", 664),
    ],
)
def test_real_files_are_learned_from(objective: str, name: str, count: int) -> None:
    assert len(learned(config(objective), REAL / name)[0]) == count


def test_several_files_are_learned_one_after_another_with_the_class_of_each(
    tmp_path: Path,
) -> None:
    chosen = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    files = [
        {"file": str(write(tmp_path / "pku.jsonl", *PKU)), "category": "EHD"},
        str(write(tmp_path / "trl.jsonl", chosen)),
    ]
    settings = config("dpo", train=files)
    columns = chosen_columns(settings, settings.data.train, None)
    assert [a.response for a in OBJECTIVES["dpo"].view(columns, settings.objective, 0)][::2] == [
        "b", "b", "good",
    ]  # fmt: skip
    assert columns["category"] == ["EHD", "EHD", "GENERAL"]


def test_a_cost_model_learns_from_pairs_and_single_answers_together(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    singles = [
        {"prompt": "what ?", "response": text, "is_safe": is_safe, "category": "EHD"}
        for text, is_safe in (("that is fine .", True), ("a item .", False))
    ]
    pair = pku(True, False, 1, 0) | {
        "prompt": "how ?", "response_0": "clean it .", "response_1": "a lamp .", "category": "IHD"
    }  # fmt: skip
    tie = pair | {"safer_response_id": None}
    twice = pair | {"response_1": pair["response_0"]}
    files = [
        str(write(tmp_path / "s.jsonl", *singles)),
        str(write(tmp_path / "p.jsonl", pair, tie, twice)),
    ]
    said: list[str] = []
    settings = config("cost", train=files)
    columns = chosen_columns(settings, settings.data.train, None, said.append)
    table = labelled_answers(settings, columns, tmp_path / "policy")
    assert (len(table), table.num_groups, table.num_alone) == (3, 1, 2)
    # The less safe answer of the pair, the other one; then the single ones as they come.
    assert table.is_safe.tolist() == [False, True, True, False]
    assert table.shares == {Category.IHD: 0.5, Category.EHD: 0.5}
    assert any(
        "p.jsonl: 1 rows left out: neither answer is said to be the safer" in x for x in said
    )


@pytest.mark.parametrize("objective", ["sft", "dpo", "reward"])
def test_of_other_objectives_pairs_and_single_answers_are_not_one_training(
    tmp_path: Path, objective: str
) -> None:
    single = {"prompt": "q", "response": "r", "is_safe": True}
    files = [str(write(tmp_path / "p.jsonl", *PKU)), str(write(tmp_path / "s.jsonl", single))]
    settings = config(objective, train=files)
    refusal = r"p\.jsonl, .*s\.jsonl: some files hold pairs.*objective.type=cost and scorer; leave"
    if objective != "sft":  # which can read both, but not as one
        refusal = r"s\.jsonl: column .* is missing"
    with pytest.raises(DataError, match=refusal), naming(settings.data.train):
        chosen_columns(settings, settings.data.train, None)


def test_a_file_without_the_labels_that_its_objective_needs_is_named_among_others(
    tmp_path: Path,
) -> None:
    chosen = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    files = [str(write(tmp_path / "p.jsonl", *PKU)), str(write(tmp_path / "trl.jsonl", chosen))]
    settings = config("bfpo", train=files)
    with pytest.raises(DataError, match=r"^[^ ]*trl\.jsonl: columns is_chosen_safe"):
        chosen_columns(settings, settings.data.train, None)


def test_the_built_in_world_writes_its_remedy_as_conversations(tmp_path: Path) -> None:
    """A noted prompt is `<bos> what is the X ? <sep> fact <eos> <bos> prompt <sep>`."""
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tree = {"objective": {"type": "sft"}, "fdc": {"remedy": {"plain": 3, "noted": 3}}}
    settings = parse_settings(FitConfig, tree)
    columns = chosen_columns(settings, (), None)
    assert [len(prompt) for prompt in columns["prompt"]] == [1, 1, 1, 3, 3, 3]
    table = labelled_answers(settings, columns, tmp_path)
    assert table.num_left_out == 0
    question, note, asked = (turn.content for turn in columns["prompt"][3])
    text = f"<bos> {question} <sep> {note} <eos> <bos> {asked} <sep> {columns['response'][3]} <eos>"
    start, end = table.sequences.starts[3:5]
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert table.sequences.flat[start:end].tolist() == expected
    assert tokenizer.unk_token_id not in expected


def scorer_settings(train: list[Path], **objective: Any) -> FitConfig:
    tree = {
        "objective": {"type": "scorer", **objective},
        "data": {"policy": "unused", "train": [str(file) for file in train]},
    }
    return parse_settings(FitConfig, tree)


def test_two_heads_learn_from_rows_with_both_labels_and_need_pairs(tmp_path: Path) -> None:
    row = {
        "prompt": "p", "response_0": "good", "response_1": "other", "better_response_id": 0,
        "safer_response_id": 1, "is_response_0_safe": False, "is_response_1_safe": True,
    }  # fmt: skip
    pairs, singles = tmp_path / "pairs.jsonl", tmp_path / "singles.jsonl"
    words = sorted(word for word in build_tokenizer().get_vocab() if word.isalpha())
    rows = [{**row, "prompt": word} for word in words[:6]]
    rows[2] |= {"safer_response_id": None}
    rows[3] |= {"better_response_id": None}
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [
        {"prompt": f"{words[0]} {word}", "response": word, "is_safe": bool(number % 2)}
        for number, word in enumerate(words[:200])
    ]
    singles.write_text("".join(json.dumps(row) + "\n" for row in answers))
    config = scorer_settings([pairs, singles])
    columns = chosen_columns(config, config.data.train, None)
    found = OBJECTIVES["scorer"].view(columns, config.objective, 0)
    assert [(one.response, one.side) for one in found[:2]] == [("good", 1), ("other", -1)]
    assert len(found) == 2 * 4 + 200
    alone = scorer_settings([singles])
    with pytest.raises(DataError, match=r"hold single answers alone, .*add a file of pairs"):
        chosen_columns(alone, alone.data.train, None)
    start = tmp_path / "start"
    start.mkdir()
    (start / "config.json").write_text("{}")
    build_tokenizer().save_pretrained(start)
    for share, what in ((0.005, "held out for calibration"), (0.999, "to learn from")):
        config = scorer_settings([pairs, singles], held_out_fraction=share)
        with pytest.raises(DataError, match=f"of 4 pairs beside 200 single answers none is {what}"):
            require_pairs(config, labelled_answers(config, columns, start))
    half = scorer_settings([pairs, singles], held_out_fraction=0.5)
    require_pairs(half, labelled_answers(half, columns, start))
    costs = parse_settings(FitConfig, {"objective": {"type": "cost"}, "data": half.data})
    require_pairs(costs, labelled_answers(costs, columns, start))
