"""What one model folder means, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equilibrate.config.base import TextConfig
from equilibrate.errors import DataError
from equilibrate.sandbox.tokenizer import build_tokenizer, encode_prompt
from equilibrate.text.renderer import Renderer, end_ids_of
from equilibrate.types import Message
from tests.fakes import encode_response
from tests.unit.text.folders import FOLDERS

QUESTION = "how do i clean the lamp ?"


def written(kind: str, folder: Path, **files: dict) -> Path:
    FOLDERS[kind](folder)
    for name, settings in files.items():
        (folder / f"{name}.json").write_text(json.dumps(settings))
    return folder


def with_template(folder: Path, template: str | None) -> Path:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def tokens(renderer: Renderer, ids: list[int]) -> list[str]:
    return renderer.tokenizer.convert_ids_to_tokens(ids)


def test_the_built_in_world_keeps_its_ids(tmp_path):
    tokenizer = build_tokenizer()
    renderer = Renderer(with_template(tmp_path, tokenizer.chat_template))
    (answer,) = renderer.answers([QUESTION], ["it is fine ."])
    prompt = encode_prompt(tokenizer, QUESTION)
    assert renderer.prompt_ids(QUESTION) == prompt
    assert answer.token_ids == prompt + encode_response(tokenizer, "it is fine .")
    assert answer.prompt_length == len(prompt)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [401, 404]}, {}, {401, 404}),
        # A generation config that is silent hides nothing.
        ({"temperature": 0.6}, {"eos_token_id": 404}, {401, 404}),
        ({}, {"text_config": {"eos_token_id": [404]}}, {401, 404}),
        ({}, {"eos_token_id": 0}, {0, 401}),
        ({}, {}, {401}),
    ],
)
def test_the_ends_of_an_answer_are_one_set(tmp_path, generation, config, expected):
    folder = written("llama_3", tmp_path, generation_config=generation, config=config)
    assert set(end_ids_of(folder)) == expected
    # Taught: what the template puts behind a turn if it ends an answer, else the end of sequence.
    (answer,) = Renderer(folder).answers([QUESTION], ["it is"])
    assert answer.token_ids[-1] == (404 if 404 in expected else 401)


def test_a_folder_without_any_end_is_refused_by_the_files_at_fault(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"generation_config\.json, config\.json and the tokenizer"):
        Renderer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(DataError, match=r"config\.json: eos_token_id \('</s>'\) must be a token"):
        Renderer(tmp_path)


def test_a_template_reads_the_day_of_the_run_and_not_the_clock(tmp_path):
    folder = written("dated", tmp_path)
    monday, tuesday = (Renderer(folder, TextConfig(date=f"2026-11-{day}")) for day in (30, 29))
    ids = monday.prompt_ids(QUESTION)
    assert "Today is 30 Nov 2026" in monday.tokenizer.decode(ids)
    assert ids != tuesday.prompt_ids(QUESTION)
    assert "Today is 26 Jul 2024" in monday.tokenizer.decode(Renderer(folder).prompt_ids(QUESTION))


def test_template_arguments_reach_the_template_in_prompts_and_answers(tmp_path):
    folder = written("chatml", tmp_path)
    silent = Renderer(folder, TextConfig(template_arguments={"enable_thinking": False}))
    thought = tokens(silent, silent.prompt_ids(QUESTION))
    assert {"<think>", "</think>"} <= set(thought)
    assert "<think>" not in tokens(silent, Renderer(folder).prompt_ids(QUESTION))
    (answer,) = silent.answers([QUESTION], ["it is fine ."])
    assert answer.token_ids[: answer.prompt_length] == silent.prompt_ids(QUESTION)


def test_without_a_template_contents_stand_as_they_are(tmp_path):
    renderer = Renderer(written("no_template", tmp_path))
    conversation = (
        Message(role="system", content="be kind"),
        Message(role="user", content="a lamp"),
        Message(role="assistant", content=" it is"),
        Message(role="user", content="thank you"),
    )
    # This tokenizer puts a space before a text that follows a control token.
    text = "".join(tokens(renderer, renderer.prompt_ids(conversation))).replace("▁", " ")
    assert text == "<s> be kind<0x0A><0x0A>a lamp it is</s> thank you"


def test_plain_text_after_an_empty_prompt_is_as_if_it_stood_alone(tmp_path):
    renderer = Renderer(written("no_template", tmp_path))
    (answer,) = renderer.answers([""], ["it is"])
    tokenizer = renderer.tokenizer
    assert answer.token_ids == [*tokenizer("it is")["input_ids"], tokenizer.eos_token_id]


def test_only_what_the_tokenizer_itself_begins_with_comes_first(tmp_path):
    # It knows a beginning of sequence, but puts none before a text.
    renderer = Renderer(with_template(tmp_path, None))
    assert tokens(renderer, renderer.prompt_ids("the lamp")) == ["the", "lamp"]
    (answer,) = renderer.answers(["the lamp"], ["it"])
    assert tokens(renderer, answer.token_ids) == ["the", "lamp", "it", "<eos>"]


@pytest.mark.parametrize("change", ["| upper", "| tojson", "| replace('\\n', ' ')", "[:9]"])
def test_a_template_that_changes_contents_is_refused(tmp_path, change):
    template = f"{{% for m in messages %}}{{{{ m['content'] {change} }}}}{{% endfor %}}"
    with pytest.raises(DataError, match=r"hand on each turn once and unchanged, but turn 0 \(user"):
        Renderer(with_template(tmp_path, template)).prompt_ids(QUESTION)


def test_a_turn_that_the_template_leaves_out_is_refused(tmp_path):
    renderer = Renderer(with_template(tmp_path, "{{ messages[0]['content'] }}"))
    system, user = Message(role="system", content="be"), Message(role="user", content="lamp")
    assert tokens(renderer, renderer.prompt_ids("lamp")) == ["lamp"]
    # A template of prompts alone: the answer ends with the end of sequence.
    (answer,) = renderer.answers(["lamp"], ["it"])
    assert tokens(renderer, answer.token_ids) == ["lamp", "it", "<eos>"]
    with pytest.raises(DataError, match=r"turn 1 \(user\) of system, user comes 0 times"):
        renderer.prompt_ids((system, user))


def test_roles_that_the_template_refuses_are_named(tmp_path):
    renderer = Renderer(written("several_eos", tmp_path))
    system, user = Message(role="system", content="be"), Message(role="user", content="lamp")
    with pytest.raises(DataError, match=r"refuses a conversation of system, user \(System role"):
        renderer.prompt_ids((system, user))


@pytest.mark.parametrize("roles", [(), ("user", "assistant")])
def test_a_prompt_ends_where_an_answer_can_follow(tmp_path, roles):
    renderer = Renderer(written("chatml", tmp_path))
    with pytest.raises(DataError, match="must end with a turn of the user"):
        renderer.prompt_ids(tuple(Message(role=role, content="lamp") for role in roles))


def test_a_conversation_to_learn_from_ends_with_an_answer(tmp_path):
    renderer = Renderer(written("chatml", tmp_path))
    with pytest.raises(DataError, match=r"the last turn \(user\) must be the assistant's"):
        renderer.render((Message(role="user", content="lamp"),))


def test_a_template_that_trims_does_so_to_answers_too(tmp_path):
    renderer = Renderer(written("llama_3", tmp_path))
    padded, plain = renderer.answers([QUESTION] * 2, ["\n it is \n", "it is"])
    assert padded == plain
    kept, plain = Renderer(written("chatml", tmp_path / "chatml")).answers(
        [QUESTION] * 2, ["\n it is \n", "it is"]
    )
    assert kept != plain


def test_folders_without_a_tokenizer_are_named(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}: holds no tokenizer"):
        Renderer(tmp_path)
