"""GGUF files and adapters, which need the packages of `requirements/model.lock`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from equilibrate.errors import DataError
from equilibrate.models.folders import WEIGHT_FILE
from equilibrate.models.importing import import_model
from tests.unit.models.test_importing import (
    TEMPLATE,
    TOKENS,
    logits,
    note_of,
    pickle_weights,
    write_source,
    write_tokenizer,
)
from tests.unit.models.toys import SIZES as MODEL_SIZES
from tests.unit.models.toys import causal_model

# peft's own warnings on what it is made to do here.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Model (has|with) `tie_word:UserWarning",
    "ignore:Setting `save_embedding_layers`:UserWarning",
    "ignore:fan_in_fan_out is set:UserWarning",
)


def gguf() -> Any:
    pytest.importorskip("accelerate", reason="in requirements/model.lock")
    return pytest.importorskip("gguf", reason="in requirements/model.lock")


SIZES = {"vocab_size": 262, "context_length": 64, "embedding_length": 64, "block_count": 1}
HEADS = {"feed_forward_length": 96, "head_count": 2, "head_count_kv": 1}
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_gguf(
    file: Path, *, cutting: str = "smollm", quantized: bool = True, words: bool = True, **facts: Any
) -> dict[str, torch.Tensor]:
    """A llama with a tied head, as llama.cpp writes it. Returns: its numbers, by its names."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    library = gguf()
    kind = library.GGMLQuantizationType.Q4_1 if quantized else library.GGMLQuantizationType.F32
    writer = library.GGUFWriter(file, "llama")
    for name, size in (SIZES | HEADS).items():
        getattr(writer, f"add_{name}")(size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(library.LlamaFileType.MOSTLY_Q4_1)
    writer.add_license("apache-2.0")
    for name, value in facts.items():
        getattr(writer, f"add_{name}")(value)
    if words:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cutting)
        letters = list(bytes_to_unicode().values())
        writer.add_token_list([*CONTROL, *letters, "he", "ĠĠ", "12"])
        writer.add_token_types([3] * 3 + [1] * 259)
        writer.add_token_merges(["h e", "Ġ Ġ", "1 2"])
        writer.add_eos_token_id(2)
        writer.add_bos_token_id(1)
        writer.add_pad_token_id(2)
        writer.add_chat_template(TEMPLATE)
    numbers = {}
    rows = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64, "ffn_gate": 96}
    shapes = {f"blk.0.{name}.weight": (size, 64) for name, size in rows.items()}
    shapes |= {"blk.0.ffn_up.weight": (96, 64), "blk.0.ffn_down.weight": (64, 96)}
    shapes |= {"token_embd.weight": (262, 64), "output_norm.weight": (64,)}
    shapes |= {"blk.0.attn_norm.weight": (64,), "blk.0.ffn_norm.weight": (64,)}
    for name, shape in shapes.items():
        values = torch.randn(shape).numpy()
        if len(shape) == 1 or not quantized:
            writer.add_tensor(name, values)
            numbers[name] = torch.tensor(values)
            continue
        packed = library.quants.quantize(values, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        numbers[name] = torch.tensor(library.quants.dequantize(packed, kind))
    for write in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file"):
        getattr(writer, write)()
    writer.close()
    return numbers


def test_a_gguf_file_becomes_a_folder_of_the_same_numbers(tmp_path: Path) -> None:
    numbers = write_gguf(tmp_path / "toy.gguf")
    note = note_of(tmp_path / "toy.gguf", tmp_path / "out")
    assert (note.kind, note.quantization, note.stored_as) == ("GGUF", "Q4_1", "8 Q4_1, 3 F32")
    assert (note.license, note.dtype, note.is_head_tied) == ("apache-2.0", "float32", True)
    assert (note.vocabulary_size, note.has_template) == (262, True)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config
    found = load_file(tmp_path / "out" / WEIGHT_FILE)
    assert len(found) == note.num_tensors == len(numbers)
    for theirs, ours in {
        "token_embd": "embed_tokens",
        "blk.0.ffn_down": "layers.0.mlp.down_proj",
        "blk.0.attn_v": "layers.0.self_attn.v_proj",
        "blk.0.ffn_norm": "layers.0.post_attention_layernorm",
    }.items():
        assert torch.equal(found[f"model.{ours}.weight"], numbers[f"{theirs}.weight"])
    assert not import_model(tmp_path / "toy.gguf", tmp_path / "out")[1]


def test_a_gguf_file_that_is_not_quantised_says_so(tmp_path: Path) -> None:
    write_gguf(tmp_path / "toy.gguf", quantized=False)
    note = note_of(tmp_path / "toy.gguf", tmp_path / "out")
    assert (note.quantization, note.stored_as) == ("", "11 F32")


def test_text_is_cut_as_the_file_says(tmp_path: Path) -> None:
    for cutting, wanted in {
        # A digit by itself, and so two spaces before one are a pair.
        "smollm": ["he", "ĠĠ", "1", "2"],
        # The last space belongs to the number.
        "gpt-2": ["he", "Ġ", "Ġ", "12"],
    }.items():
        write_gguf(tmp_path / f"{cutting}.gguf", cutting=cutting)
        note_of(tmp_path / f"{cutting}.gguf", tmp_path / cutting)
        assert AutoTokenizer.from_pretrained(tmp_path / cutting).tokenize("he  12") == wanted
    write_gguf(tmp_path / "odd.gguf", cutting="deepseek-llm")
    with pytest.raises(DataError, match=r"tokenizer\.ggml\.pre \('deepseek-llm'\) is not known"):
        import_model(tmp_path / "odd.gguf", tmp_path / "odd")
    other = tmp_path / "smollm"
    assert note_of(tmp_path / "odd.gguf", tmp_path / "odd", tokenizer=other).has_template


def test_gguf_files_that_are_no_model_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "toy.gguf"
    write_gguf(file, words=False)
    with pytest.raises(DataError, match=r"has no tokenizer in it; .*--tokenizer FOLDER"):
        import_model(file, tmp_path / "out")
    write_gguf(file, type="adapter")
    with pytest.raises(DataError, match="'adapter'"):
        import_model(file, tmp_path / "out")
    write_gguf(file)
    whole = file.read_bytes()
    for length in (4, 30, 500, len(whole) // 2, len(whole) - 400):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"toy\.gguf: (damaged|transformers cannot read it)"):
            import_model(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_adapter(base: Path, folder: Path, **options: Any) -> torch.Tensor:
    """Returns: logits of the base with a random adapter."""
    peft = pytest.importorskip("peft", reason="in requirements/model.lock")
    torch.manual_seed(1)
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | options
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in adapted.named_parameters():
        if "lora" in name or "modules_to_save" in name:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted.eval()(TOKENS).logits


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen3", "phi3", "gpt2"])
def test_base_and_adapter_become_one(tmp_path: Path, kind: str) -> None:
    base = write_source(tmp_path / "base", kind)
    targets = {"phi3": ["qkv_proj"], "gpt2": ["c_attn"]}.get(kind, ["q_proj", "down_proj"])
    wanted = write_adapter(base, tmp_path / "adapter", target_modules=targets)
    assert not torch.allclose(logits(base), wanted, atol=1e-3)
    note = note_of(base, tmp_path / "out", adapter=tmp_path / "adapter")
    assert note.adapter == "adapter"
    torch.testing.assert_close(logits(tmp_path / "out"), wanted, rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "out/adapter_config.json").exists()


@pytest.mark.parametrize(
    "options", [{"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}]
)
def test_kinds_of_lora_are_merged_too(tmp_path: Path, options: dict[str, Any]) -> None:
    base = write_source(tmp_path / "base")
    wanted = write_adapter(base, tmp_path / "adapter", **options)
    note_of(pickle_weights(base), tmp_path / "out", adapter=tmp_path / "adapter")
    torch.testing.assert_close(logits(tmp_path / "out"), wanted, rtol=1e-5, atol=1e-5)


def test_an_adapter_keeps_the_dtype_of_its_base(tmp_path: Path) -> None:
    base = write_tokenizer(tmp_path / "base")
    causal_model().to(torch.bfloat16).save_pretrained(base)
    wanted = write_adapter(base, tmp_path / "adapter")
    assert note_of(base, tmp_path / "out", adapter=tmp_path / "adapter").dtype == "bfloat16"
    torch.testing.assert_close(logits(tmp_path / "out"), wanted.float(), rtol=0.05, atol=0.02)


def test_a_head_tied_to_the_embeddings_is_changed_in_whole_or_not_at_all(tmp_path: Path) -> None:
    base = write_source(tmp_path / "base", "llama-tied")
    wanted = write_adapter(base, tmp_path / "whole", modules_to_save=["lm_head"])
    assert not note_of(base, tmp_path / "out", adapter=tmp_path / "whole").is_head_tied
    torch.testing.assert_close(logits(tmp_path / "out"), wanted, rtol=1e-5, atol=1e-5)
    # Merged into the one tensor, the change of the head would move the embeddings too.
    write_adapter(base, tmp_path / "half", target_modules=["lm_head"])
    with pytest.raises(DataError, match="one tensor with the embeddings here"):
        import_model(base, tmp_path / "other", adapter=tmp_path / "half")


def test_adapters_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    base, other = write_source(tmp_path / "base"), write_tokenizer(tmp_path / "other")
    wide = LlamaConfig(**MODEL_SIZES | {"hidden_size": 32})
    LlamaForCausalLM(wide).save_pretrained(other)
    adapter = tmp_path / "adapter"
    write_adapter(base, adapter)
    with pytest.raises(DataError, match="adapter: does not fit a LlamaForCausalLM of this size"):
        import_model(other, tmp_path / "out", adapter=adapter)
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    first, *rest = sorted(tensors)
    save_file({name: tensors[name] for name in rest}, weights)
    with pytest.raises(DataError, match=r"do not match .*lora_A"):
        import_model(base, tmp_path / "out", adapter=adapter)
    save_file(tensors | {"base_model.model.x.lora_A.weight": tensors[first].clone()}, weights)
    with pytest.raises(DataError, match=r"do not match .*x\.lora_A"):
        import_model(base, tmp_path / "out", adapter=adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for key, value in {"peft_type": "IA3", "task_type": "SEQ_CLS"}.items():
        (adapter / "adapter_config.json").write_text(json.dumps(settings | {key: value}))
        with pytest.raises(DataError, match=f"{key} \\({value!r}\\) must be"):
            import_model(base, tmp_path / "out", adapter=adapter)
    weights.unlink()
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="adapter"):
        import_model(base, tmp_path / "out", adapter=adapter)
