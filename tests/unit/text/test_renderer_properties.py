"""Eight kinds of tokenizers: what people say stays text, and every path makes the same ids."""

from __future__ import annotations

import random
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest

from equilibrate.text.plain import Start
from equilibrate.text.renderer import Renderer, end_ids_of
from equilibrate.types import Conversation, Message
from tests.unit.text.folders import CORPUS, FOLDERS, TAKES_NO_SYSTEM

NUM_HOSTILE = 10_000
QUESTION, ANSWER, THANKS = "how do i clean the lamp ?", "it is fine .", "thank you"
BYTE_LEVEL = ("chatml", "llama_3", "default_system", "dated", "pad_is_eos")


@pytest.fixture(scope="module", params=list(FOLDERS))
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp(kind)
    FOLDERS[kind](path)
    return path


@pytest.fixture(scope="module")
def renderer(folder) -> Renderer:
    return Renderer(folder)


def turns(*contents: str, system: str = "") -> Conversation:
    """User and assistant in turn."""
    said = [
        Message(role="assistant" if number % 2 else "user", content=content)
        for number, content in enumerate(contents)
    ]
    return (*([Message(role="system", content=system)] if system else []), *said)


@cache
def hostile_strings(markers: tuple[str, ...]) -> list[str]:
    """Markers, whole and in pieces, among words, white space, other scripts and odd characters."""
    rng = random.Random("hostile")
    words = [word for line in CORPUS for word in line.split()]
    odd = [
        "é",
        "日本",
        "🙂",
        "\u200b",
        "\u3000",
        "▁",
        "Ġ",
        "Ċ",
        "\0",
        "\x1b",
        "ﬁ",
        "S",
        "</",
        "\u2003",
    ]
    blanks = [" ", "  ", "    ", "\n", "\n\n", "\t", ""]

    def piece() -> str:
        marker = rng.choice(markers)
        cut = rng.randint(0, len(marker))
        broken = (marker[:cut], marker[cut:], f"{marker[:cut]}{marker}{marker[cut:]}")
        plain = (rng.choice(words), rng.choice(odd), rng.choice(blanks))
        return rng.choice((marker, marker, marker.upper(), *broken, *plain))

    return [
        *markers,
        *("".join(piece() for _ in range(rng.randint(1, 6))) for _ in range(NUM_HOSTILE)),
    ][:NUM_HOSTILE]


def markers_of(renderer: Renderer) -> tuple[str, ...]:
    added = [token.content for token in renderer.tokenizer.added_tokens_decoder.values()]
    return (*added, "[INST]", "<<SYS>>", "### user:\n", "Turn0:\"<&>'\\\n.Ax;", "<0x0A>")


def control_of(renderer: Renderer, ids: list[int]) -> list[int]:
    return [token_id for token_id in ids if token_id in renderer.control_ids]


def test_no_content_yields_a_control_id(renderer, kind):
    strings = hostile_strings(markers_of(renderer))
    assert len(set(strings)) > NUM_HOSTILE // 2
    # In every turn at once, each in turn with another string.
    system = "" if kind in TAKES_NO_SYSTEM else "be kind"
    wanted = control_of(
        renderer, renderer.prompt_ids(turns(QUESTION, ANSWER, THANKS, system=system))
    )
    hostile = [
        turns(one, f"{other} .", one, system=system and f"{other} .")
        for one, other in zip(strings, strings[1:] + strings[:1], strict=True)
    ]
    for ids in renderer.prompts(hostile):
        assert control_of(renderer, ids) == wanted


def test_no_answer_yields_a_control_id_and_each_has_one_end(renderer):
    strings = hostile_strings(markers_of(renderer))
    prompt = renderer.prompt_ids(QUESTION)
    (plain,) = renderer.answers([QUESTION], ["it is"])
    wanted = [*control_of(renderer, prompt), plain.token_ids[-1]]
    given = [text if number % 2 else "" for number, text in enumerate(strings[::-1])]
    for answer in renderer.answers([QUESTION] * len(strings), strings, given=given):
        assert control_of(renderer, answer.token_ids) == wanted
        assert answer.token_ids[: answer.prompt_length] == prompt
        assert answer.token_ids[-1] == plain.token_ids[-1]
    for answer in renderer.answers([QUESTION] * 100, strings[:100], has_end=[False] * 100):
        assert control_of(renderer, answer.token_ids) == wanted[:-1]


def test_ids_of_harmless_text_are_those_of_the_tokenizer_itself(renderer):
    """What a model has learned its format from: one pass over the whole rendered text."""
    tokenizer = renderer.tokenizer
    if not tokenizer.chat_template:
        assert renderer.prompt_ids(QUESTION) == tokenizer(QUESTION)["input_ids"]
        return
    for said in ((QUESTION,), (QUESTION, ANSWER, THANKS)):
        whole = tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns(*said)],
            add_generation_prompt=True,
            return_dict=False,
            strftime_now=lambda _: "26 Jul 2024",
        )
        assert renderer.prompt_ids(turns(*said)) == whole


@pytest.mark.parametrize("kind", BYTE_LEVEL, indirect=True, scope="module")
def test_text_survives_to_the_letter(renderer):
    for text in hostile_strings(markers_of(renderer))[:500]:
        (answer,) = renderer.answers([QUESTION], [f"x{text}x"])
        ids = answer.token_ids[answer.prompt_length : -1]
        decoded = renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert decoded == f"x{text}x"


def test_masks_are_true_on_what_the_assistant_says_in_every_turn(renderer, kind):
    conversation = turns(QUESTION, ANSWER, THANKS, ANSWER)
    ids, mask = renderer.render(conversation)
    (last,) = renderer.answers([conversation[:3]], [ANSWER])
    assert ids == last.token_ids
    assert ids[: last.prompt_length] == renderer.prompt_ids(conversation[:3])
    assert mask[last.learn_start :] == [True] * (len(ids) - last.learn_start)
    # The first answer is learned as it would be if the conversation had ended with it, but that a
    # template may close only the last one.
    (first,) = renderer.answers([QUESTION], [ANSWER])
    said = first.token_ids[first.learn_start :]
    expected = said[:-1] if kind == "pad_is_eos" else said
    assert ids[: first.prompt_length] == renderer.prompt_ids(QUESTION)
    assert mask[: first.prompt_length] == [False] * first.prompt_length
    told = [token_id for token_id, is_said in zip(ids, mask, strict=True) if is_said]
    assert told == [*expected, *said]


def test_a_string_is_one_user_turn(renderer):
    assert renderer.prompt_ids(QUESTION) == renderer.prompt_ids(turns(QUESTION))


def test_an_end_that_the_data_carry_is_not_added_twice(renderer, folder):
    (plain,) = renderer.answers([QUESTION], [ANSWER])
    for end in end_ids_of(folder):
        text = renderer.tokenizer.convert_ids_to_tokens(end)
        carried = [f"{ANSWER}{text}", f"{ANSWER}{text}\n", f"{ANSWER}{text}{text}"]
        for answer in renderer.answers([QUESTION] * 3, carried):
            assert answer == plain


def test_given_text_and_response_are_the_answer(renderer):
    (whole,) = renderer.answers([QUESTION], [ANSWER])
    for cut in (5, 10):
        (parts,) = renderer.answers([QUESTION], [ANSWER[cut:]], given=[ANSWER[:cut]])
        assert parts.token_ids == whole.token_ids
        assert whole.learn_start < parts.learn_start < len(parts.token_ids)


def test_decoding_gives_the_answer_back_without_its_end(renderer):
    (answer,) = renderer.answers([QUESTION], [ANSWER])
    assert renderer.decode(answer.token_ids[answer.prompt_length :]) == ANSWER


SAID = (
    ANSWER,
    " it  is\n\nfine ",
    "naïve 日本 🙂👩‍👩‍👧",
    "</s> <|im_end|> x",
    "日本日本",
    "",
    " \n",
)


def test_ends_of_what_is_decoded_grow_with_each_token(renderer):
    """Against decoding each prefix alone."""
    for said in SAID:
        ids = renderer._plain.encode([(Start.TURN, said)])[Start.TURN, said]
        whole = renderer.tokenizer.decode(ids, skip_special_tokens=True)
        before = len(whole) - len(whole.lstrip())
        lengths = [len(complete(renderer, ids[: number + 1])) for number in range(len(ids))]
        # SentencePiece's decoder takes characters back while a next one is not whole.
        expected = [
            min(max(0, length - before), len(whole.strip())) for length in accumulate(lengths, max)
        ]
        assert renderer.decoded_ends(ids) == expected
        assert renderer.decoded_ends([*ids, renderer._ends[0]]) == [*expected, len(whole.strip())]


def complete(renderer, ids: list[int]) -> str:
    return renderer.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")


def test_any_ids_have_ends_within_their_text(renderer):
    """A policy may sample bytes that are no character, and control tokens between them."""
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(len(renderer.tokenizer)) for _ in range(rng.randint(0, 20))]
        text, ends = renderer.decode(ids), renderer.decoded_ends(ids)
        assert len(ends) == len(ids)
        assert all(0 <= end <= len(text) for end in ends)
        assert not ids or not text[ends[-1] :].strip("\ufffd \n\t")


def test_ends_of_an_answer_are_those_of_its_tokens(renderer):
    for said in map(str.strip, SAID):
        for has_end in (True, False):
            (answer,) = renderer.answers([QUESTION], [said], has_end=[has_end])
            ids = answer.token_ids[answer.prompt_length : len(answer.token_ids) - has_end]
            ends = renderer.answer_ends(QUESTION, said, has_end=has_end)
            assert len(ends) == len(ids)
            assert ends == sorted(ends)
            assert not said or ends[-1] >= len(said)
            # A token is no further than its text, and not behind it but in a run of characters of
            # which SentencePiece writes each byte.
            written = renderer.decoded_ends(ids)
            inside = [min(max(0, end), len(said)) for end in ends]
            assert all(end >= there for end, there in zip(inside, written, strict=True))
            whole = [end for end, there in zip(inside, written, strict=True) if end == there]
            assert not said or whole[-1] == len(said)
