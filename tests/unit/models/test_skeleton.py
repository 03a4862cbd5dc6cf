"""Names, shapes and ties of many kinds of models, held to what transformers loads and saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from equilibrate.errors import DataError
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import WEIGHT_FILE, tensor_shapes
from equilibrate.models.loading import load_policy
from equilibrate.models.names import folder_aliases, folder_tensors, sent_shapes, tied_names
from equilibrate.models.skeleton import skeleton
from tests.unit.models.toys import CONFIGS, causal_model, write_policy

CPU = Accelerator("cpu", "float32")
HEADS = {"lm_head.weight", "embed_out.weight"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_skeleton_is_the_loaded_model_without_its_numbers(tmp_path: Path, kind: str) -> None:
    folder = write_policy(tmp_path, kind)
    model = AutoModelForCausalLM.from_pretrained(folder)
    bones = skeleton(folder, "policy")
    assert {parameter.device.type for parameter in bones.parameters()} == {"meta"}
    assert type(bones) is type(model)
    assert tied_names(bones) == tied_names(model)
    assert {name: p.shape for name, p in bones.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_sent_is_what_the_folder_holds_and_a_tied_head(tmp_path: Path, kind: str) -> None:
    folder = write_policy(tmp_path, kind)
    shapes, held = sent_shapes(skeleton(folder, "policy")), tensor_shapes(folder)
    assert {name: shape for name, shape in shapes.items() if name in held} == held
    assert shapes.keys() - held.keys() <= HEADS
    # The sender has the loaded model, and finds the same names; values are those of the file.
    model = load_policy(folder, CPU).model
    sent = dict(folder_tensors(model, model.named_parameters()))
    assert sent.keys() | folder_aliases(model).keys() == shapes.keys()
    saved = load_file(folder / WEIGHT_FILE)
    for name, tensor in sent.items():
        assert torch.equal(tensor, saved[name]), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_plain_transformers_reads_what_an_export_writes(tmp_path: Path, kind: str) -> None:
    model = load_policy(write_policy(tmp_path / "start", kind), CPU).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    # As learners do: every parameter under the model's own name, a shared one once.
    whole = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    model.save_pretrained(tmp_path / "end", state_dict=whole)
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "end", attn_implementation=model.config._attn_implementation
    )
    token_ids = torch.tensor([[1, 5, 9, 17, 30, 4]])
    with torch.no_grad():
        assert torch.equal(read(token_ids).logits, model(token_ids).logits)
    assert tied_names(read) == tied_names(model)


def test_tensors_that_need_no_new_form_are_not_copied() -> None:
    model = causal_model("llama")
    for name, tensor in folder_tensors(model, model.named_parameters()):
        assert tensor.data_ptr() == model.get_parameter(name).data_ptr()


def test_tied_names_finds_the_shared_parameter() -> None:
    model = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(3, 2), "head": torch.nn.Linear(2, 3, bias=False)}
    )
    assert tied_names(model) == {}
    model["head"].weight = model["embed"].weight
    assert tied_names(model) == {"head.weight": "embed.weight"}


def test_a_tied_head_goes_by_the_name_of_the_folder(tmp_path: Path) -> None:
    # Ties come from the model: Gemma's config.json says nothing of them.
    assert folder_aliases(causal_model("gemma2")) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert folder_aliases(causal_model("gpt2")) == {"lm_head.weight": "transformer.wte.weight"}
    assert folder_aliases(causal_model("llama")) == {}
    folder = write_policy(tmp_path, "gemma2")
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    assert sent_shapes(skeleton(folder, "policy"))["lm_head.weight"] == (32, 16)


def test_hub_folders_without_the_prefix_are_read(tmp_path: Path) -> None:
    folder = write_policy(tmp_path, "gpt2")
    tensors = load_file(folder / WEIGHT_FILE)
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(short, folder / WEIGHT_FILE, {"format": "pt"})
    assert "transformer.wte.weight" in sent_shapes(skeleton(folder, "policy"))
    assert torch.equal(load_policy(folder, CPU).model.transformer.wte.weight, short["wte.weight"])


def test_two_heads_under_a_config_that_ties_them_are_refused(tmp_path: Path) -> None:
    folder = write_policy(tmp_path, "llama-tied")
    tensors = load_file(folder / WEIGHT_FILE)
    embeddings = tensors["model.embed_tokens.weight"]
    # The same head twice says nothing new.
    save_file(tensors | {"lm_head.weight": embeddings.clone()}, folder / WEIGHT_FILE)
    assert tied_names(load_policy(folder, CPU).model)
    save_file(tensors | {"lm_head.weight": embeddings + 1}, folder / WEIGHT_FILE)
    with pytest.raises(DataError, match=r"tie_word_embeddings must be false: .*lm_head\.weight"):
        load_policy(folder, CPU)


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def add(name: str) -> Any:
    return lambda tensors: tensors.update({name: torch.ones(2, 2)})


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("llama", drop("model.layers.1.mlp.up_proj.weight")),
        ("llama", drop("lm_head.weight")),
        ("llama", add("value_head.weight")),
        ("llama", add("model.norm.weight")),
        ("llama", add("model.layers.0.self_attn.rotary_emb.inv_freq")),
        ("llama-tied", drop("model.embed_tokens.weight")),
        ("gpt-neox", drop("embed_out.weight")),
        ("mixtral", drop("model.layers.0.block_sparse_moe.experts.3.w2.weight")),
        ("mixtral", drop("model.layers.0.block_sparse_moe.gate.weight")),
        ("qwen2-moe", add("model.layers.0.mlp.experts.0.gate.weight")),
    ],
)
def test_gaps_are_those_that_transformers_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, damage: Any
) -> None:
    folder = write_policy(tmp_path, kind)
    tensors = load_file(folder / WEIGHT_FILE)
    damage(tensors)
    save_file(tensors, folder / WEIGHT_FILE, {"format": "pt"})
    _, wanted = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True
    )
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "equilibrate.models.skeleton.refuse_gaps", lambda *given: found.append(given[-1])
    )
    skeleton(folder, "policy")
    for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert sorted(found[0][keys]) == sorted(wanted[keys]), keys
    assert any(wanted.values()) or kind == "llama"
