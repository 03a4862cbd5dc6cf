"""One word is one token, and a chat request renders to the training format."""

import random

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from equilibrate.sandbox.answers import Style, write_answer
from equilibrate.sandbox.grammar import base_pool, sample_request
from equilibrate.sandbox.tokenizer import (
    build_tokenizer,
    encode_prompt,
    vocabulary,
)
from equilibrate.sandbox.world import build_world
from equilibrate.types import Category
from tests.fakes import encode_response

TOKENIZER = build_tokenizer()
WORLD = build_world(3)


def test_special_tokens_come_first_and_words_are_unique():
    words = vocabulary()
    assert words[:5] == ["<pad>", "<unk>", "<bos>", "<eos>", "<sep>"]
    assert len(words) == len(set(words)) == len(TOKENIZER)
    special = (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)
    assert special == (0, 2, 3)


@pytest.mark.parametrize("category", list(Category))
def test_round_trip_without_unknown_words(category):
    rng = random.Random(0)
    for _ in range(50):
        request = sample_request(category, base_pool(WORLD), rng)
        response = write_answer(WORLD, request, rng.choice(list(Style)), rng, slot_noise=0.5)
        prompt_ids = encode_prompt(TOKENIZER, request.text)
        response_ids = encode_response(TOKENIZER, response)
        assert len(prompt_ids) == len(request.text.split()) + 2
        assert len(response_ids) == len(response.split()) + 1
        assert TOKENIZER.unk_token_id not in prompt_ids + response_ids
        assert TOKENIZER.decode(response_ids, skip_special_tokens=True) == response


def test_chat_template_equals_training_format():
    prompt = "how do i clean the lamp ?"
    message = [{"role": "user", "content": prompt}]
    rendered = TOKENIZER.apply_chat_template(message, tokenize=True, add_generation_prompt=True)
    assert list(rendered["input_ids"]) == encode_prompt(TOKENIZER, prompt)
    typed = [{"role": "user", "content": "How do I clean the lamp?"}]
    assert list(TOKENIZER.apply_chat_template(typed)["input_ids"]) == encode_prompt(
        TOKENIZER, prompt
    )


def test_chat_template_refuses_roles_it_was_not_trained_on():
    with pytest.raises(TemplateError, match="user and assistant only"):
        TOKENIZER.apply_chat_template([{"role": "system", "content": "be kind"}])


def test_folder_loads_as_an_ordinary_tokenizer(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "how do i clean the lamp ?"
    assert encode_prompt(loaded, text) == encode_prompt(TOKENIZER, text)
    assert loaded.chat_template == TOKENIZER.chat_template
    assert (loaded.eos_token_id, loaded.pad_token_id) == (3, 0)
