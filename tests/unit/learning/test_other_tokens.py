"""A scorer with another tokenizer: what it reads, and which scores the policy's tokens get."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from equilibrate.config.base import TextConfig
from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.errors import DataError
from equilibrate.learning.other_tokens import OtherTokens, check_readable
from equilibrate.learning.scoring import ScoringWorker
from equilibrate.models.device import Accelerator
from equilibrate.run.inputs import check_files
from equilibrate.text.plain import Start
from equilibrate.text.renderer import Renderer
from equilibrate.types import (
    Category,
    Conversation,
    FinishReason,
    Message,
    Prompt,
    Rollout,
    as_conversation,
)
from tests.tiny_models import TINY_LLAMA

CPU = Accelerator("cpu", "float32")
WORDS = ("<unk>", "<bos>", "<end>", "user", "assistant", "system", "red", "cat", "a", "b", "你好")
TURNS = (
    "{% for m in messages %}{{ '<bos>' + m['role'] + ' ' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>assistant ' }}{% endif %}"
)
TRIMMED = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ '<bos>' + m['role'] + '\n' + m['content'] | trim + '\n<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>assistant\n' }}{% endif %}"
)
RED = as_conversation("red ?")
TALK = (
    Message(role="system", content="be kind"),
    Message(role="user", content="red ?"),
    Message(role="assistant", content="cat"),
    Message(role="user", content="a 🙂 b ?"),
)


def word_level(folder: Path, template: str) -> Path:
    """One token a word, whatever white space is between; what it does not know is `<unk>`."""
    backend = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _write(folder, backend, template, unk_token="<unk>")


def byte_level(folder: Path, template: str, *merges: tuple[str, str]) -> Path:
    """One token a byte, but for the merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*WORDS[:3], *alphabet, *(left + right for left, right in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _write(folder, backend, template)


def _write(folder: Path, backend: Tokenizer, template: str, **names: str) -> Path:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<end>", **names
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    size = len(tokenizer)
    torch.manual_seed(size)
    sizes = {**TINY_LLAMA, "vocab_size": size, "initializer_range": 0.3, "eos_token_id": 2}
    if folder.name == "policy":
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    else:
        LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=1)).save_pretrained(folder)
        (folder / "equilibrate_score.json").write_text(json.dumps({"kind": "reward", "bias": 0.5}))
    return folder


@pytest.fixture(scope="module")
def words_for_bytes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("words_for_bytes")
    return {
        "policy": byte_level(root / "policy", TURNS),
        "reward": word_level(root / "reward", TURNS),
    }


@pytest.fixture(scope="module")
def bytes_for_words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bytes_for_words")
    return {
        "policy": word_level(root / "policy", TURNS),
        "reward": byte_level(root / "reward", TRIMMED),
    }


def rollout_of(
    policy: Renderer,
    said: str | Sequence[int],
    *,
    asked: Conversation = RED,
    is_cut: bool = False,
) -> Rollout:
    """Args: said: text of the response, or its ids without the end."""
    prompt = policy.prompt_ids(asked)
    if isinstance(said, str):
        said = policy._plain.encode([(Start.TEXT, said)])[Start.TEXT, said]
    token_ids = np.array([*prompt, *said, *([] if is_cut else [2])], np.int64)
    return Rollout(
        prompt_id="p",
        copy=0,
        category=Category.GENERAL,
        policy_version=0,
        token_ids=token_ids,
        response_mask=np.arange(len(token_ids)) >= len(prompt),
        rollout_log_probs=np.zeros(len(token_ids), np.float32),
        finish_reason=FinishReason.LENGTH if is_cut else FinishReason.STOP,
        messages=asked,
    )


def other(folders: dict[str, Path], **changes: Any) -> OtherTokens:
    arguments = {"policy": str(folders["policy"]), "text": None, "max_tokens": 4096}
    return OtherTokens(str(folders["reward"]), "reward", CPU, **{**arguments, **changes})


class Counting:
    """Instead of a model: the score of a prefix is the number of its tokens."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        self.rows += token_ids.tolist()
        self.shapes.append(tuple(token_ids.shape))
        return torch.arange(1.0, token_ids.shape[1] + 1).expand(token_ids.shape)


def counted(folders: dict[str, Path], rollout: Rollout) -> list[int]:
    """Tokens of the answer that the scorer has read, at each of the policy's; all those of the
    prompt at the prompt."""
    scorer = other(folders)
    scorer._scorer = Counting()  # type: ignore[assignment]
    (scores,) = scorer.score([rollout])
    (length,) = map(len, Renderer(folders["reward"]).prompts([rollout.messages]))
    assert scores[~rollout.response_mask].tolist() == [length] * int((~rollout.response_mask).sum())
    numbers: list[int] = (scores[rollout.response_mask] - length).astype(int).tolist()
    return numbers


@pytest.mark.parametrize(
    ("said", "is_cut", "expected"),
    [
        # r e d _ 3 bytes of each character _ c a t, and the end.
        ("red 你好 cat", False, [0, 0, 1, 1, *[1] * 5, 2, 2, 2, 2, 3, 4]),
        ("red 你好 cat", True, [0, 0, 1, 1, *[1] * 5, 2, 2, 2, 2, 3]),
        ("red 🙂", True, [0, 0, 1, 1, 1, 1, 1, 2]),
        ("", False, [1]),
        # White space is said by the policy and cut off for the scorer.
        ("  red \n", False, [0, 0, 0, 0, 1, 1, 1, 2]),
        (" \n", False, [0, 0, 1]),
        (" \n", True, [0, 0]),
        # What spells a control token is a word like any other.
        ("a <bos> b", False, [1, 1, 1, 1, 1, 1, 2, 2, 3, 4]),
        # An end that is spelled out is the end, as in training.
        ("a <end>", False, [1, 1, 1, 1, 1, 1, 1, 2]),
    ],
)
def test_a_word_is_read_where_its_last_byte_is_written(
    words_for_bytes: dict[str, Path], said: str, is_cut: bool, expected: list[int]
) -> None:
    policy = Renderer(words_for_bytes["policy"])
    assert counted(words_for_bytes, rollout_of(policy, said, is_cut=is_cut)) == expected


def test_a_character_of_which_only_a_part_was_written(words_for_bytes: dict[str, Path]) -> None:
    policy = Renderer(words_for_bytes["policy"])
    whole = policy.tokenizer.backend_tokenizer.encode("red 你").ids
    # The half of it reads as a word of its own, the unknown character.
    found = counted(words_for_bytes, rollout_of(policy, whole[:-1], is_cut=True))
    assert found == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("said", "is_cut", "expected"),
    [
        # 3 bytes, 1 + 6, 1 + 3; then the new line that its template writes, and the end.
        ("red 你好 cat", False, [3, 10, 14, 16]),
        ("red 你好 cat", True, [3, 10, 14]),
        ("", False, [2]),
        # As it is decoded: one space between words, whatever was asked for.
        ("a   b", False, [1, 3, 5]),
        # `<unk>` is special to the policy and no part of what it said.
        ("red ? cat", False, [3, 3, 7, 9]),
    ],
)
def test_of_a_word_all_bytes_are_read(
    bytes_for_words: dict[str, Path], said: str, is_cut: bool, expected: list[int]
) -> None:
    policy = Renderer(bytes_for_words["policy"])
    assert counted(bytes_for_words, rollout_of(policy, said, is_cut=is_cut)) == expected


def test_white_space_that_it_puts_before_an_answer_is_no_part_of_it(
    bytes_for_words: dict[str, Path], tmp_path: Path
) -> None:
    """As of Llama 2: the prompt ends without the space that an answer begins with."""
    loose = TURNS.replace("m['role'] + ' ' + m", "m['role'] + '  ' + m").replace("ant '", "ant'")
    folders = bytes_for_words | {"reward": byte_level(tmp_path / "reward", loose)}
    said = rollout_of(Renderer(folders["policy"]), "red cat")
    # Two spaces and 3 bytes, 4 more, and the end.
    assert counted(folders, said) == [5, 9, 10]


def test_turns_and_answer_are_written_by_its_own_template(
    words_for_bytes: dict[str, Path],
) -> None:
    policy, scorer = Renderer(words_for_bytes["policy"]), other(words_for_bytes)
    scorer._scorer = counting = Counting()  # type: ignore[assignment]
    scorer.score([rollout_of(policy, "red dog", asked=TALK)])
    text = (
        "<bos> system <unk> <unk> <end> <bos> user red <unk> <end> <bos> assistant cat <end> "
        "<bos> user a <unk> b <unk> <end> <bos> assistant red <unk> <end>"
    )
    assert counting.rows == [[WORDS.index(word) for word in text.split()]]


def test_passes_are_bounded_and_rows_keep_their_places(words_for_bytes: dict[str, Path]) -> None:
    policy = Renderer(words_for_bytes["policy"])
    rollouts = [rollout_of(policy, "red " * count) for count in (9, 1, 30, 1, 4)]
    scorer = other(words_for_bytes, max_tokens=24)
    scorer._scorer = counting = Counting()  # type: ignore[assignment]
    found = scorer.score(rollouts)
    assert all(rows == 1 or rows * length <= 24 for rows, length in counting.shapes)
    # <bos> user red <unk> <end> <bos> assistant, the words, <end>.
    assert [of[-1] for of in found] == [7 + count + 1 for count in (9, 1, 30, 1, 4)]
    assert [len(of) for of in found] == [len(one.token_ids) for one in rollouts]
    assert scorer.score([]) == []


def test_beyond_its_positions_it_reads_nothing_and_says_so(
    words_for_bytes: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    policy, scorer = Renderer(words_for_bytes["policy"]), other(words_for_bytes)
    scorer._scorer, scorer._num_positions = Counting(), 9  # type: ignore[assignment]
    short, long = scorer.score([rollout_of(policy, "a"), rollout_of(policy, "a b a b")])
    assert short[-2:].tolist() == [8, 9]
    assert long[-8:].tolist() == [8, 8, 9, 9, 9, 9, 9, 9]
    assert "1 of 2 answers are longer than its 9 positions" in caplog.text
    scorer._num_positions = 3
    assert set(scorer.score([rollout_of(policy, "a b")])[0].tolist()) == {3.0}


PARTS = [*"abredct .?\n", "é", "你", "好", "🙂", "👩‍👩‍👧", "<end>"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


@pytest.mark.parametrize("is_cut", [False, True])
@settings(max_examples=25)
@given(said=st.lists(TEXTS, min_size=1, max_size=3))
@torch.no_grad()
def test_each_score_is_that_of_a_prefix_read_alone(
    merged: tuple[OtherTokens, Renderer, Renderer, Any], is_cut: bool, said: list[str]
) -> None:
    scorer, policy, reader, model = merged
    rollouts = [rollout_of(policy, text, asked=TALK, is_cut=is_cut) for text in said]
    for rollout, scores in zip(rollouts, scorer.score(rollouts), strict=True):
        ids = rollout.token_ids[rollout.response_mask].tolist()
        (answer,) = reader.answers([TALK], [policy.decode(ids)], has_end=[not is_cut])
        start = answer.prompt_length
        # Of the scorer's tokens those that spell no more than the policy has written.
        for place in range(1, len(ids)):
            written = policy.tokenizer.decode(ids[:place]).rstrip("\ufffd").lstrip()
            read = [
                number
                for number in range(len(answer.token_ids) - start + 1)
                if 2 not in (body := answer.token_ids[start : start + number])
                and written.startswith(reader.tokenizer.decode(body))
            ]
            prefix = torch.tensor([answer.token_ids[: start + max(read)]])
            expected = float(model(prefix).logits) + 0.5
            assert scores[len(rollout.token_ids) - len(ids) + place - 1] == pytest.approx(
                expected, abs=1e-4
            )
        whole = float(model(torch.tensor([answer.token_ids])).logits) + 0.5
        assert scores[-1] == pytest.approx(whole, abs=1e-4)


@pytest.fixture(scope="module")
def merged(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[OtherTokens, Renderer, Renderer, Any]:
    """Two byte-level vocabularies whose tokens end in different places."""
    root = tmp_path_factory.mktemp("merged")
    ni = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("你")[0][0]
    policy = byte_level(root / "policy", TURNS, ("r", "e"), ("c", "t"), ("Ġ", "a"))
    reward = byte_level(root / "reward", TURNS, ("e", "d"), ("Ġ", "c"), ("a", "b"), (ni[0], ni[1]))
    model = AutoModelForSequenceClassification.from_pretrained(reward)
    scorer = other({"policy": policy, "reward": reward}, max_tokens=100)
    return scorer, Renderer(policy), Renderer(reward), model


def test_a_worker_reads_ids_where_it_can_and_decodes_where_it_must(
    words_for_bytes: dict[str, Path], tmp_path: Path
) -> None:
    policy = Renderer(words_for_bytes["policy"])
    cost = byte_level(tmp_path / "cost", TRIMMED)
    (cost / "equilibrate_score.json").write_text(json.dumps({"kind": "cost"}))
    common: dict[str, Any] = {
        "reference": str(words_for_bytes["policy"]),
        "device": "cpu",
        "dtype": "float32",
        "cpu_threads": 1,
        "max_tokens_per_batch": 64,
        "temperature": 1.0,
    }
    rollouts = [rollout_of(policy, text, asked=TALK) for text in ("red 你好", "", "cat b")]
    both = ScoringWorker(reward=str(words_for_bytes["reward"]), cost=str(cost), **common)
    alone = ScoringWorker(reward="", cost=str(cost), **common)
    expected = other(words_for_bytes).score(rollouts)
    for one, without, of in zip(both.score(rollouts), alone.score(rollouts), expected, strict=True):
        np.testing.assert_allclose(one.token_rewards, of, atol=1e-5)
        assert one.reward == one.token_rewards[-1]
        assert one.token_rewards.dtype == np.float32
        # Byte for byte: its template differs, its tokens do not, so it reads them.
        assert np.array_equal(one.token_costs, without.token_costs)
        assert np.array_equal(one.ref_log_probs, without.ref_log_probs)
        assert len(set(one.token_costs.tolist())) > 4
    # Without a tokenizer beside it a scorer is taken to read the policy's tokens.
    for file in cost.glob("token*"):
        file.unlink()
    bare = ScoringWorker(reward="", cost=str(cost), **common)
    for one, before in zip(bare.score(rollouts), alone.score(rollouts), strict=True):
        assert np.array_equal(one.token_costs, before.token_costs)


def test_the_door_knows_the_prompts_that_it_cannot_read(
    words_for_bytes: dict[str, Path], bytes_for_words: dict[str, Path], tmp_path: Path
) -> None:
    def prompt(conversation: Conversation | str) -> Prompt:
        asked = as_conversation(conversation)
        return Prompt(
            prompt_id="row 7", text="", token_ids=(), category=Category.GENERAL, messages=asked
        )

    words, trimmed = str(words_for_bytes["reward"]), str(bytes_for_words["reward"])
    check_readable(words, TextConfig(), [prompt(TALK)], 8)
    with pytest.raises(DataError, match=r"reward: its chat template refuses .* system, user.*no s"):
        check_readable(trimmed, TextConfig(), [prompt(TALK)], 8)
    config = json.loads((words_for_bytes["reward"] / "config.json").read_text())
    short = word_level(tmp_path / "reward", TURNS)
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 15}))
    check_readable(str(short), TextConfig(), [prompt("red cat")], 8)
    with pytest.raises(
        DataError, match=r"reward: its model has 15 positions, of which prompt 'row 7' takes 8"
    ):
        check_readable(str(short), TextConfig(), [prompt("a"), prompt("red cat b")], 8)


def test_answers_that_are_given_it_does_not_score(words_for_bytes: dict[str, Path]) -> None:
    data = {name: str(folder) for name, folder in words_for_bytes.items()} | {"train": "x.jsonl"}
    config = parse_settings(FitConfig, {"data": data, "objective": {"type": "dpo"}})
    with pytest.raises(DataError, match=r"data\.reward \(.* is 'user' there, .*e \(dpo\) learns"):
        check_files(config, None)


def test_every_prompt_is_read_at_the_door(bytes_for_words: dict[str, Path], tmp_path: Path) -> None:
    row = {"messages": [{"role": turn.role, "content": turn.content} for turn in TALK]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row | {"category": "GENERAL"}))
    data = {name: str(folder) for name, folder in bytes_for_words.items()}
    data |= {"train": str(tmp_path / "x.jsonl"), "cost": data["reward"]}
    config = parse_settings(FitConfig, {"data": data, "objective": {"type": "ars"}})
    with (
        patch("equilibrate.run.inputs.check_models"),  # one folder is no scorer of both kinds
        pytest.raises(DataError, match=r"reward: its chat template refuses .*\(no system\)"),
    ):
        check_files(config, None)
