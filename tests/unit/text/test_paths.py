"""Eight kinds of tokenizers: every path of the library makes the same ids of a conversation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification

from equilibrate.config.files import parse_config
from equilibrate.config.inputs import plain
from equilibrate.data.answers import Answer
from equilibrate.evaluation.model_judge import AnswerScorer
from equilibrate.learning.ptx import PtxData
from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from equilibrate.offline.table import AnswerTable, encode_answers
from equilibrate.preference.derta import derta_answers
from equilibrate.run.folder import read_fitting
from equilibrate.text.renderer import Renderer, end_ids_of
from tests.unit.text.folders import FOLDERS

ROOM = 1024
PROMPTS = ["how do i clean the lamp ?", "<|im_end|> </s><end_of_turn>", "  what\nis it ? "]
RESPONSES = ["it is fine .", "<|eot_id|> x <s>[INST]", " that is\n a common item . "]


@pytest.fixture(scope="module", params=list(FOLDERS))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    FOLDERS[request.param](path)
    return path


def rows_of(table: AnswerTable) -> list[tuple[list[int], list[int]]]:
    """Token ids of each answer, and those that are learned."""
    padded = table.padded(np.arange(len(table.sides)))
    lengths = table.sequences.lengths.tolist()
    return [
        (ids[:length].tolist(), ids[mask].tolist())
        for ids, mask, length in zip(padded.token_ids, padded.response_mask, lengths, strict=True)
    ]


def test_ids_and_masks_are_equal_in_every_path(folder, tmp_path):
    renderer = Renderer(folder)
    pairs = list(zip(PROMPTS, RESPONSES, strict=True))
    expected = [
        ([*ids, *said], said)
        for prompt, response in pairs
        for ids in [renderer.prompt_ids(prompt)]
        for said in [renderer.answers([prompt], [response])[0].token_ids[len(ids) :]]
    ]

    # Sampling and evaluation.
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": prompt, "category": "GENERAL"} for prompt in PROMPTS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config({"output": str(tmp_path), "rollout": {"max_model_len": ROOM}})
    prompts = read_fitting(plain(file), renderer, config, tmp_path)
    for prompt, (ids, said) in zip(prompts, expected, strict=True):
        assert [*prompt.token_ids, *said] == ids

    # Demonstrations, and preferences with the scorers that are trained on them.
    answers = [Answer(prompt=prompt, response=response) for prompt, response in pairs]
    for per_example in (1, 3):
        table = encode_answers(renderer, answers, answers_per_example=per_example, max_length=ROOM)
        assert rows_of(table) == expected

    # Pretraining text beside PPO.
    data = {"prompt": PROMPTS, "response": RESPONSES}
    Dataset.from_dict(data).save_to_disk(tmp_path / "ptx")
    token_ids, mask = PtxData(tmp_path / "ptx", renderer, ROOM).draw(20, seed=0)
    learned = {tuple(ids[kept].tolist()) for ids, kept in zip(token_ids, mask, strict=True)}
    assert learned == {tuple(said) for _, said in expected}

    # A scorer as the judge.
    write_scorer(folder, len(renderer.tokenizer))
    judged = AnswerScorer(folder, "cost").encode(PROMPTS, RESPONSES)
    assert judged == [ids for ids, _ in expected]


def write_scorer(folder, vocabulary: int) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=vocabulary,
        num_hidden_layers=1,
        max_position_embeddings=ROOM,
        pad_token_id=0,
        num_labels=1,
        eos_token_id=end_ids_of(folder),
        **sizes,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    write_sidecar(folder, ScorerSidecar(kind="cost"))


def test_what_was_begun_and_the_turn_back_lose_no_text(folder):
    renderer = Renderer(folder)
    columns = {
        "prompt": ["what is it ?"],
        "chosen": ["it is fine ."],
        "rejected": ["x\n\n- how\tdo  i clean"],
        "is_chosen_safe": [True],
        "is_rejected_safe": [False],
    }
    turns = [derta_answers(columns, refusal="it", seed=seed)[0] for seed in range(9)]
    assert len({turn.given for turn in turns}) > 2
    table = encode_answers(renderer, turns, answers_per_example=1, max_length=ROOM)
    prompt = renderer.prompt_ids("what is it ?")
    for turn, (ids, learned) in zip(turns, rows_of(table), strict=True):
        said = renderer.tokenizer.decode(ids[len(prompt) : -1], clean_up_tokenization_spaces=False)
        assert said.strip() == turn.given + turn.response
        told = renderer.tokenizer.decode(learned[:-1], clean_up_tokenization_spaces=False)
        assert told.strip() == turn.response.strip()


def test_training_teaches_an_id_at_which_sampling_stops(folder):
    (answer,) = Renderer(folder).answers(PROMPTS[:1], RESPONSES[:1])
    assert answer.token_ids[-1] in end_ids_of(folder)
