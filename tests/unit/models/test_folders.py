"""Folders that are not what they are used as; none of it reads a weight."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from equilibrate.errors import DataError
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import (
    INDEX_FILE,
    WEIGHT_FILE,
    check_folder,
    check_models,
    check_positions,
    check_sampled,
    num_positions,
)
from equilibrate.models.loading import load_policy, load_scorer
from equilibrate.text.vocabulary import other_tokens, reads_what_is_said
from tests.unit.models.toys import CONFIGS, causal_model, write_policy, write_scorer

CPU = Accelerator("cpu", "float32")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / WEIGHT_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHT_FILE, {"format": "pt"})
    return folder


def edit_config(folder: Path, name: str = "config.json", **entries: Any) -> Path:
    path = folder / name
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (known | entries).items() if v is not None}))
    return folder


def refused(folder: Path, role: Any, message: str) -> None:
    """At the door and at loading alike."""
    with pytest.raises(DataError, match=message):
        check_folder(folder, role)
    with pytest.raises(DataError, match=message):
        load_policy(folder, CPU) if role == "policy" else load_scorer(folder, role, CPU)


@pytest.mark.parametrize("kind", CONFIGS)
def test_whole_folders_pass(tmp_path: Path, kind: str) -> None:
    check_folder(write_policy(tmp_path / "policy", kind), "policy")
    scorer = write_scorer(tmp_path / "scorer", kind)
    check_folder(scorer, "cost")
    load_scorer(scorer, "cost", CPU)


# A2: heads that are not there


def test_a_causal_model_is_no_scorer(tmp_path: Path) -> None:
    folder = write_scorer(tmp_path)
    causal_model("llama").save_pretrained(folder)
    refused(folder, "cost", r"score\.weight missing .*lm_head\.weight in the .*train a cost model")


def test_a_tied_causal_model_is_no_scorer(tmp_path: Path) -> None:
    folder = write_scorer(tmp_path)
    causal_model("llama-tied").save_pretrained(folder)
    refused(folder, "cost", r"score\.weight missing from the weights; a causal model has no scores")


def test_a_head_of_another_name_is_named(tmp_path: Path) -> None:
    folder = edit_weights(
        write_scorer(tmp_path), lambda t: t.update({"value_head.weight": t.pop("score.weight")})
    )
    refused(
        folder,
        "cost",
        r"score\.weight missing .*value_head\.weight in the .*rename it to score\.weight",
    )


def test_weights_that_are_missing_left_over_or_misshapen_are_named(tmp_path: Path) -> None:
    folder = write_policy(tmp_path)
    edit_weights(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    refused(folder, "policy", r"model\.layers\.1\.mlp\.up_proj\.weight missing")
    folder = write_policy(tmp_path)
    edit_weights(folder, lambda t: t.update({"adapter.weight": torch.ones(2)}))
    refused(folder, "policy", r"adapter\.weight in the weights and not in the model")
    edit_config(write_policy(tmp_path), intermediate_size=20)
    refused(tmp_path, "policy", r"mlp.* has shape \((24, 16|16, 24)\), the model \((20|16), ")
    scorer = write_scorer(tmp_path / "scorer")
    refused(scorer, "policy", r"lm_head\.weight missing .*score\.weight in the weights")


# A3: what moves or hides the zero of a cost


def test_a_bias_of_the_head_is_refused_with_its_place_in_the_sidecar(tmp_path: Path) -> None:
    folder = edit_weights(
        write_scorer(tmp_path), lambda t: t.update({"score.bias": torch.tensor([0.7])})
    )
    refused(folder, "cost", r"score\.bias in the .*add the bias to `bias` in equilibrate_score")


def test_two_labels_are_refused(tmp_path: Path) -> None:
    refused(write_scorer(tmp_path, labels=2), "cost", r"shape \(2, 16\), the model \(1, 16\)")
    edit_config(tmp_path, id2label={"0": "safe", "1": "unsafe"})
    refused(tmp_path, "cost", r"config\.json: num_labels \(2\) must be 1")


def test_a_score_that_is_more_than_its_head_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForSequenceClassification, LlamaModel

    folder = write_scorer(tmp_path)
    whole = LlamaForSequenceClassification.forward

    def shifted(self: Any, *inputs: Any, **options: Any) -> Any:
        outputs = whole(self, *inputs, **options)
        outputs.logits = outputs.logits + 1
        return outputs

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForSequenceClassification, "forward", shifted)
        with pytest.raises(DataError, match="is not its head"):
            load_scorer(folder, "cost", CPU)
    states = LlamaModel.forward

    def looking_ahead(self: Any, *inputs: Any, **options: Any) -> Any:
        outputs = states(self, *inputs, **options)
        hidden = outputs.last_hidden_state
        outputs.last_hidden_state = hidden + hidden.mean(1, keepdim=True)
        return outputs

    monkeypatch.setattr(LlamaModel, "forward", looking_ahead)
    with pytest.raises(DataError, match="depends on later tokens"):
        load_scorer(folder, "cost", CPU)


# A20 and what stands beside the weights


def test_an_adapter_beside_the_weights_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_policy(tmp_path)
    save_file({"lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    refused(folder, "policy", r"adapter_model\.safetensors is beside .*move it elsewhere")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "policy", r"adapter_config\.json: adapters are not applied")


def test_files_that_the_index_does_not_name_are_ignored(tmp_path: Path) -> None:
    causal_model().save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / INDEX_FILE).exists()
    save_file({"x": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    check_folder(tmp_path, "policy")
    load_policy(tmp_path, CPU)
    save_file({"x": torch.ones(2)}, tmp_path / WEIGHT_FILE)
    refused(tmp_path, "policy", r"model\.safetensors and .*index\.json, which does not name it")


def test_a_shard_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    causal_model().save_pretrained(tmp_path, max_shard_size="4KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    refused(tmp_path, "policy", rf"{shard.name}: not a safetensors file")
    shard.unlink()
    refused(tmp_path, "policy", rf"index\.json: names {shard.name}, which is not beside it")


def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "model")
    shutil.move(folder / WEIGHT_FILE, tmp_path / WEIGHT_FILE)
    names = dict.fromkeys(load_file(tmp_path / WEIGHT_FILE), f"../{WEIGHT_FILE}")
    edit_config(folder, INDEX_FILE, weight_map=names)
    refused(folder, "policy", r"names \.\./model\.safetensors, which is not beside it")


# Programs in place of weights


class Canary:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "model")
    tensors = load_file(folder / WEIGHT_FILE)
    (folder / WEIGHT_FILE).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    refused(folder, "policy", r"holds pytorch_model\.bin and no .*safetensors alone")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    refused(folder, "policy", r"holds pytorch_model\.bin and no .*safetensors alone")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_a_folder_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = write_policy(tmp_path / "model")
    code = f"from pathlib import Path\nPath({str(tmp_path / 'canary')!r}).write_text('ran')\n"
    (folder / "modeling.py").write_text(code + "class Config: ...\nclass Model: ...\n")
    edit_config(folder, name, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    refused(folder, "policy", rf"{name}: auto_map .*modeling\.Model.* is never run")
    assert not (tmp_path / "canary").exists()


def test_a_kind_that_transformers_does_not_know_is_one_line(tmp_path: Path) -> None:
    edit_config(write_policy(tmp_path), model_type="nobody")
    refused(tmp_path, "policy", r"^[^\n]*no model that can be a policy \([^\n]*nobody[^\n]*\)$")


# A4: tokens


def tokenizer(words: str, *, splitter: Any = None, **extra: Any) -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({w: i for i, w in enumerate(words.split())}, unk_token="<unk>"))
    inner.pre_tokenizer = splitter or Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", **extra
    )


WORDS = "<unk> </s> naïve 3 . 14159 3.14159 a b"


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (tokenizer(WORDS), None),
        (tokenizer(WORDS, chat_template="{{ messages[0].content }}"), None),
        (tokenizer(WORDS.replace("a b", "b a")), "token 7 is 'b' there, 'a' here"),
        (tokenizer(WORDS.removesuffix(" b")), "token 8 is no token there, 'b' here"),
        (tokenizer(WORDS, pad_token="<pad>"), "token 9 is '<pad>' there, no token here"),
        (tokenizer(WORDS, splitter=WhitespaceSplit()), "the same tokens cut .* differently"),
    ],
)
def test_a_scorer_has_the_tokens_of_the_policy_or_others(
    tmp_path: Path, theirs: PreTrainedTokenizerFast, message: str | None
) -> None:
    policy, cost = write_policy(tmp_path / "policy"), write_scorer(tmp_path / "cost")
    with pytest.raises(DataError, match="has no tokenizer"):
        check_models(policy, [(cost, "cost")])
    assert other_tokens(policy, cost) == ""
    tokenizer(WORDS).save_pretrained(policy)
    theirs.save_pretrained(cost)
    check_models(policy, [(cost, "cost")])
    assert re.search(message or "^$", other_tokens(policy, cost))
    assert reads_what_is_said(policy, cost) == bool(message)
    assert other_tokens(policy, "") == ""


def test_no_id_can_be_beyond_the_embeddings(tmp_path: Path) -> None:
    policy, reward = write_policy(tmp_path / "policy"), tmp_path / "reward"
    write_scorer(reward, role="reward")
    for folder in (policy, reward):
        tokenizer(WORDS).save_pretrained(folder)
    check_models(policy, [(reward, "reward")])
    # Some models have more rows than their tokenizer has tokens, and may sample them.
    model = causal_model()
    model.resize_token_embeddings(40)
    model.save_pretrained(policy)
    with pytest.raises(DataError, match=r"knows tokens 0 to 31, the policy .* sample 0 to 39"):
        check_models(policy, [(reward, "reward")])
    model.resize_token_embeddings(8)
    model.save_pretrained(policy)
    with pytest.raises(DataError, match=r"ids up to 8, the model knows 0 to 7"):
        check_folder(policy, "policy")


def test_a_model_with_fewer_positions_than_a_rollout_is_refused(tmp_path: Path) -> None:
    folder = edit_config(write_policy(tmp_path), max_position_embeddings=32)
    check_positions(folder, 32)
    with pytest.raises(DataError, match=r"has 32 positions, and rollout.max_model_len \(33\)"):
        check_positions(folder, 33)
    check_positions(edit_config(folder, rope_scaling={"type": "yarn", "factor": 4.0}), 33)


@pytest.mark.parametrize(
    ("kind", "device", "message"),
    [
        ("llama", "cpu", ""),
        ("gpt2", "cpu", ""),
        ("mixtral", "cpu", r"num_local_experts \(4\).*on a CPU"),
        ("qwen2-moe", "cpu", r"num_experts \(4\).*on a CPU"),
        ("gpt-oss", "cpu", r"num_local_experts \(4\).*on a CPU"),
        ("mixtral", "cuda", ""),
    ],
)
def test_a_policy_whose_updates_the_generator_does_not_take_is_refused(
    kind: str, device: Any, message: str, tmp_path: Path
) -> None:
    CONFIGS[kind].save_pretrained(tmp_path)
    with pytest.raises(DataError, match=message) if message else nullcontext():
        check_sampled(tmp_path, device)


@pytest.mark.parametrize(
    ("entries", "positions"),
    [
        ({"max_position_embeddings": 48}, 48),
        ({"n_positions": 48}, 48),  # as GPT-2 says it
        ({"max_position_embeddings": 48, "rope_scaling": None}, 48),
        ({"max_position_embeddings": 48, "rope_scaling": {"type": "yarn", "factor": 4.0}}, None),
        ({"max_position_embeddings": 48, "rope_parameters": {"factor": 4.0}}, None),
        ({}, None),
    ],
)
def test_where_the_positions_of_a_model_end(
    entries: dict[str, Any], positions: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(entries))
    assert num_positions(tmp_path) == positions
