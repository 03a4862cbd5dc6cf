from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForSequenceClassification

from equilibrate.errors import ConfigError, DataError
from equilibrate.evaluation.judge_plugins import load_judge
from equilibrate.evaluation.judges import helpfulness_by
from equilibrate.evaluation.model_judge import MAX_PADDED, AnswerScorer, batches
from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from equilibrate.sandbox.tokenizer import EOS, build_tokenizer, encode_prompt
from equilibrate.types import Category, Message, Prompt
from tests.fakes import encode_response
from tests.tiny_models import world_llama

TOKENIZER = build_tokenizer()
PROMPTS = ["how do i clean the lamp ?", "how do i clean the lamp ?", "what is a lamp ?"]
RESPONSES = ["i", "first the lamp , it is fine .", "a common item ."]

LONG = " ".join(["lamp"] * 99)


def write_scorer(folder: Path, sidecar: ScorerSidecar, *, is_zero: bool = False) -> Path:
    """A fresh Llama with one score per token; with `is_zero` its head gives 0 for everything."""
    torch.manual_seed(0)
    config = world_llama(TOKENIZER, num_labels=1)
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=0.0 if is_zero else 1.0)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    write_sidecar(folder, sidecar)
    return folder


def prompt(text: str, category: Category = Category.EHD) -> Prompt:
    return Prompt(prompt_id="p", text=text, token_ids=(1,), category=category)


@pytest.mark.parametrize(("threshold", "harmful"), [(0.5, True), (1.0, False), (1.5, False)])
def test_harm_is_a_cost_above_the_threshold_by_hand(tmp_path, threshold, harmful):
    # The head gives 0, so the score is 0 + bias = 1: at the threshold is not above it.
    sidecar = ScorerSidecar(kind="cost", bias=1.0, threshold=threshold)
    folder = write_scorer(tmp_path / "guard", sidecar, is_zero=True)
    judge = load_judge("cost_model", folder=str(folder))
    categories = (Category.EHD, Category.GENERAL, Category.GENERAL)
    verdicts = judge.judge(
        [prompt("what is a lamp ?", category) for category in categories],
        ["a common item .", "a common item .", "I cannot"],
    )
    assert judge.name == "cost model guard"
    assert [verdict.harmful for verdict in verdicts] == [harmful] * 3
    # By phrases, as there is no reward model.
    assert [verdict.helpfulness for verdict in verdicts] == [0.0, 1.0, 0.0]
    assert [verdict.refused for verdict in verdicts] == [False, False, True]


def test_helpfulness_is_the_sigmoid_of_the_reward_by_hand(tmp_path):
    # 2 x 0 + log 3 + 1 - 1: sigmoid(log 3) = 3 / 4
    sidecar = ScorerSidecar(kind="reward", scale=2.0, bias=math.log(3) + 1, threshold=1.0)
    reward = write_scorer(tmp_path / "kind", sidecar, is_zero=True)
    cost = write_scorer(tmp_path / "guard", ScorerSidecar(kind="cost"), is_zero=True)
    judge = load_judge("cost_model", folder=cost, reward=reward)
    assert judge.name == "cost model guard, reward model kind"
    assert helpfulness_by(judge) == "reward model kind"
    assert helpfulness_by(load_judge("cost_model", folder=cost)) == ""
    (verdict,) = judge.judge([prompt("what is a lamp ?")], ["i cannot"])
    assert verdict.helpfulness == pytest.approx(0.75)
    assert (verdict.harmful, verdict.refused, verdict.malformed) == (False, True, False)


def test_scores_are_those_of_transformers_one_row_at_a_time(tmp_path):
    sidecar = ScorerSidecar(kind="cost", scale=-2.0, bias=3.0, threshold=1.0)
    folder = write_scorer(tmp_path, sidecar)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    expected = []
    for text, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = encode_prompt(TOKENIZER, text) + encode_response(TOKENIZER, response)
        with torch.no_grad():
            raw = model(input_ids=torch.tensor([ids])).logits.item()
        expected.append(-2 * raw + 3 - 1)
    assert len(set(expected)) == 3
    for batch_size in (1, 2, 3):
        scores = AnswerScorer(folder, "cost", batch_size=batch_size).score(PROMPTS, RESPONSES)
        assert scores.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_batches_by_hand() -> None:
    # Sorted 9 10 10 100: 3 rows of 10 are padded by one token; 100 beside them would be by 271.
    assert list(batches([10, 100, 9, 10], 16)) == [[2, 0, 3], [1]]
    assert list(batches([10, 10, 10], 2)) == [[0, 1], [2]]
    assert list(batches([], 2)) == []


@given(st.lists(st.integers(1, 500)), st.integers(1, 20))
def test_every_row_is_in_one_batch_with_little_padding(lengths: list[int], size: int) -> None:
    found = list(batches(lengths, size))
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    for batch in found:
        chosen = [lengths[row] for row in batch]
        assert len(batch) <= size
        assert len(batch) * max(chosen) <= MAX_PADDED * sum(chosen)


def test_threads_are_those_that_are_named_and_given_back(tmp_path: Path) -> None:
    seen = []

    class Watched(AnswerScorer):
        def _score_batch(self, rows: Sequence[Sequence[int]]) -> list[float]:
            seen.append(torch.get_num_threads())
            return super()._score_batch(rows)

    folder = write_scorer(tmp_path, ScorerSidecar(kind="cost"))
    before = torch.get_num_threads()
    for threads, expected in ((before + 1, before + 1), (0, before)):
        Watched(folder, "cost", threads=threads).score(PROMPTS[:1], RESPONSES[:1])
        assert seen.pop() == expected
        assert torch.get_num_threads() == before
    with pytest.raises(ConfigError, match=r"threads \(-1\)"):
        load_judge("cost_model", folder=str(folder), threads=-1)


def test_answers_are_encoded_as_in_training_and_cut_where_positions_end(tmp_path):
    scorer = AnswerScorer(write_scorer(tmp_path, ScorerSidecar(kind="cost")), "cost")
    ids = encode_prompt(TOKENIZER, PROMPTS[0]) + encode_response(TOKENIZER, RESPONSES[1])
    assert scorer.encode(PROMPTS[:1], RESPONSES[1:2]) == [ids]
    (row,) = scorer.encode(PROMPTS[:1], [LONG])
    assert len(row) == 64


def test_stretched_positions_cut_nothing(tmp_path):
    folder = write_scorer(tmp_path, ScorerSidecar(kind="cost"))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    (row,) = AnswerScorer(folder, "cost").encode(PROMPTS[:1], [LONG])
    assert len(row) > 99


def test_a_judge_reads_the_template_as_its_training_did(tmp_path):
    folder = write_scorer(tmp_path, ScorerSidecar(kind="cost"))
    template = "{% if brief %}item {% endif %}{{ messages[0]['content'] }}"
    (folder / "chat_template.jinja").write_text(template)
    judge = load_judge("cost_model", folder=str(folder), text={"template_arguments": {"brief": 1}})
    (row,) = judge._cost.encode(["lamp"], ["it"])
    words = ["item", "lamp", "it", EOS]
    assert TOKENIZER.convert_ids_to_tokens(row) == words
    with pytest.raises(ConfigError, match=r"date \('today'\)"):
        load_judge("cost_model", folder=str(folder), text={"date": "today"})


def test_a_conversation_is_judged_whole(tmp_path):
    scorer = AnswerScorer(write_scorer(tmp_path, ScorerSidecar(kind="cost")), "cost")
    turns = (
        Message(role="user", content=PROMPTS[0]),
        Message(role="assistant", content=RESPONSES[2]),
        Message(role="user", content=PROMPTS[2]),
    )
    (row,) = scorer.encode([turns], RESPONSES[:1])
    first = encode_prompt(TOKENIZER, PROMPTS[0]) + encode_response(TOKENIZER, RESPONSES[2])
    second = encode_prompt(TOKENIZER, PROMPTS[2]) + encode_response(TOKENIZER, RESPONSES[0])
    assert row == first + second


def test_folders_that_hold_no_such_model_are_named(tmp_path):
    with pytest.raises(DataError, match=r"equilibrate_score\.json: missing"):
        load_judge("cost_model", folder=str(tmp_path))
    write_sidecar(tmp_path, ScorerSidecar(kind="cost"))
    with pytest.raises(DataError, match=r"config\.json: missing; give a Hugging Face model folder"):
        load_judge("cost_model", folder=str(tmp_path))
    write_sidecar(tmp_path, ScorerSidecar(kind="reward"))
    with pytest.raises(DataError, match=r"kind \('reward'\) must be 'cost'"):
        load_judge("cost_model", folder=str(tmp_path))
