"""Plain folders of what people bring."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from equilibrate import cli
from equilibrate.errors import DataError, ResourceError
from equilibrate.models import adapters, gguf_file, importing
from equilibrate.models.folders import INDEX_FILE, WEIGHT_FILE, check_folder
from equilibrate.models.importing import IMPORT_NOTE, ImportNote, import_model
from equilibrate.models.pickled import PICKLED_FILE, PICKLED_INDEX
from equilibrate.models.sidecar import SIDECAR_FILE
from tests.unit.models.toys import CONFIGS, causal_model, write_policy, write_scorer

TOKENS = torch.tensor([[1, 5, 9, 17, 30, 4]])
TEMPLATE = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "Hello", "world"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def write_source(folder: Path, kind: str = "llama") -> Path:
    return write_tokenizer(write_policy(folder, kind))


def pickle_weights(folder: Path, *, num_files: int = 1) -> Path:
    """Exchange safetensors for `.bin`."""
    tensors = load_file(folder / WEIGHT_FILE)
    (folder / WEIGHT_FILE).unlink()
    if num_files == 1:
        torch.save(tensors, folder / PICKLED_FILE)
        return folder
    weight_map = {name: f"part-{i % num_files}.bin" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        torch.save({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / PICKLED_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(TOKENS).logits


def note_of(source: Path, out: Path, **options: Any) -> ImportNote:
    note, is_new = import_model(source, out, **options)
    assert is_new
    check_folder(out, "policy")
    return note


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("num_files", [1, 3])
def test_bin_files_become_the_same_model(tmp_path: Path, kind: str, num_files: int) -> None:
    source = write_source(tmp_path / "source", kind)
    wanted = logits(source)
    note = note_of(pickle_weights(source, num_files=num_files), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), wanted)
    model = causal_model(kind)
    assert note.kind == "pickled"
    assert note.is_head_tied == bool(model.config.tie_word_embeddings)
    assert note.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert not list((tmp_path / "out").glob("*.bin"))


def test_shards_of_bfloat16_keep_every_bit(tmp_path: Path) -> None:
    model = causal_model().to(torch.bfloat16)
    source = write_tokenizer(tmp_path / "source")
    model.save_pretrained(source, max_shard_size="3KB")
    assert (source / INDEX_FILE).exists()
    note = note_of(source, tmp_path / "out")
    assert (note.dtype, note.stored_as, note.quantization) == ("bfloat16", "bfloat16", "")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    found = load_file(tmp_path / "out" / WEIGHT_FILE)
    for name, tensor in model.state_dict().items():
        assert found[name].dtype is torch.bfloat16
        assert torch.equal(found[name], tensor), name


def test_kinds_of_numbers_are_joined_in_one_that_holds_them_all(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    tensors = load_file(source / WEIGHT_FILE)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].bfloat16()
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
    save_file(tensors, source / WEIGHT_FILE, {"format": "pt"})
    note = note_of(source, tmp_path / "out")
    assert (note.dtype, note.stored_as) == ("float32", "bfloat16, float16, float32")
    found = load_file(tmp_path / "out" / WEIGHT_FILE)["lm_head.weight"]
    assert torch.equal(found, tensors["lm_head.weight"].float())


def test_what_is_no_weight_comes_along_as_it_was(tmp_path: Path) -> None:
    source = pickle_weights(write_source(tmp_path / "source"))
    settings = '{"eos_token_id": [2, 5], "temperature": 0.6}'  # transformers would not save it
    (source / "generation_config.json").write_text(settings)
    (source / "LICENSE.txt").write_text("free")
    (source / "training_args.bin").write_bytes(b"never read")
    note_of(source, tmp_path / "out")
    assert (tmp_path / "out/generation_config.json").read_text() == settings
    assert (tmp_path / "out/LICENSE.txt").read_text() == "free"
    before, after = (AutoTokenizer.from_pretrained(f) for f in (source, tmp_path / "out"))
    assert after.chat_template == before.chat_template == TEMPLATE
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


def test_a_scorer_keeps_its_sidecar_and_needs_none_to_be_imported(tmp_path: Path) -> None:
    source = pickle_weights(write_tokenizer(write_scorer(tmp_path / "source")))
    import_model(source, tmp_path / "with")
    check_folder(tmp_path / "with", "cost")
    (source / SIDECAR_FILE).unlink()
    import_model(source, tmp_path / "without")
    with pytest.raises(DataError, match="a scorer needs it to state what its numbers mean"):
        check_folder(tmp_path / "without", "cost")


def test_the_command_says_what_it_did_and_that_it_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pickle_weights(write_source(tmp_path / "toy", "llama-tied"))
    command = ["import", str(source), str(tmp_path / "new/out")]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "toy: pickled (float32)" in told
    assert "LlamaForCausalLM" in told
    assert "head tied to the embeddings" in told
    assert "6 tokens, with a chat template" in told
    assert cli.main(command) == 0
    assert "It was there already" in capsys.readouterr().out
    tensors = torch.load(source / PICKLED_FILE, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, source / PICKLED_FILE)
    assert cli.main(command) == 3
    assert "made of other files" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    with pytest.raises(DataError, match="source: exists and is not empty"):
        import_model(source, source)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: exists"):
        import_model(source, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    note_of(source, tmp_path / "empty")


@pytest.mark.parametrize("end", [KeyboardInterrupt, DataError("{}: damaged")])
def test_an_import_that_ends_early_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Any
) -> None:
    source = write_source(tmp_path / "source")
    leftover = tmp_path / ".out.importing"  # of one that was killed
    leftover.mkdir()
    (leftover / "half").touch()

    def stop(folder: Path, role: str) -> None:
        assert (folder / WEIGHT_FILE).exists()
        assert not (folder / "half").exists()
        raise end if end is KeyboardInterrupt else DataError(str(end).format(folder))

    with monkeypatch.context() as patched:
        patched.setattr(importing, "check_folder", stop)
        with pytest.raises((KeyboardInterrupt, DataError)) as stopped:
            import_model(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    # Not the name of a folder that is gone.
    assert stopped.type is KeyboardInterrupt or str(stopped.value) == f"{source}: damaged"
    note_of(source, tmp_path / "out")


def test_a_disk_too_small_is_named_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: space)
    with pytest.raises(ResourceError, match=r"0\.0 GB are to be written"):
        import_model(write_source(tmp_path / "source"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Program:
    """Unpickled by anything careless, it writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_bin(found: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / WEIGHT_FILE).unlink()
        torch.save(found, folder / PICKLED_FILE)

    return write


def with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def with_config(**entries: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | entries))

    return write


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(WEIGHT_FILE), r"holds no \*\.safetensors file"),
        (without("config.json"), r"config\.json: missing"),
        (no_tokenizer, "holds no tokenizer; .*source OUT --tokenizer FOLDER"),
        (with_bin([1]), "must map names to tensors, holds a list"),
        (with_bin({"model": {}, "step": 3}), "'model' is a dict, and must be a tensor"),
        (with_bin({"lm_head.weight": torch.ones(2)}), "missing from the weights"),
        (with_bin({"a": torch.ones(2, dtype=torch.int8)}), "weights of none are not read"),
        (with_bin({"a": torch.ones(2).to(torch.float8_e4m3fn)}), "weights of float8_e4m3fn"),
        (with_text(WEIGHT_FILE, "text"), "not a safetensors file"),
        (with_text("x.gguf", ""), r"holds x\.gguf; try python -m equilibrate import .*x\.gguf OUT"),
        (with_text("adapter_config.json", '{"base_model_name_or_path": "a/b"}'),
         "give its base, a/b, too: python -m equilibrate import a/b OUT --adapter .*source"),
        (with_config(quantization_config={"quant_method": "gptq"}), r"\(gptq\): only GGUF"),
        (with_config(auto_map={"AutoModel": "x.Y"}), "names code in the folder"),
        (with_config(vocab_size=4), r"has shape \(32, 16\), the model \(4, 16\)"),
        (with_config(num_labels=2, architectures=["LlamaForSequenceClassification"]),
         "score.weight missing"),
    ],
)  # fmt: skip
def test_folders_that_are_not_models_are_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(source := write_source(tmp_path / "source"))
    with pytest.raises(DataError, match=message):
        import_model(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_damaged_bin_files_are_named_and_none_is_run(tmp_path: Path) -> None:
    source = pickle_weights(write_source(tmp_path / "source"))
    file = source / PICKLED_FILE
    with file.open("wb") as content:
        pickle.dump({"lm_head.weight": Program(tmp_path / "proof")}, content, protocol=2)
    with pytest.raises(DataError, match=r"pytorch_model\.bin: not a file of tensors alone"):
        import_model(source, tmp_path / "out")
    assert not (tmp_path / "proof").exists()
    for content in (b"", b"text", b"PK\x03\x04 cut off"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"pytorch_model\.bin: not a file of tensors alone"):
            import_model(source, tmp_path / "out")
    (source / PICKLED_INDEX).write_text('{"weight_map": {"a": "../part-0.bin"}}')
    with pytest.raises(DataError, match=r"names \.\./part-0\.bin, which is not beside it"):
        import_model(source, tmp_path / "out")


def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        import_model(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match=r"safetensors: not a GGUF file; .*give the folder"):
        import_model(source / WEIGHT_FILE, tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no adapter_config\.json"):
        import_model(source, tmp_path / "out", adapter=source)
    with pytest.raises(DataError, match="holds no tokenizer"):
        import_model(source, tmp_path / "out", tokenizer=tmp_path)


def test_another_folders_tokenizer_can_be_taken(tmp_path: Path) -> None:
    source = write_policy(tmp_path / "source")
    note = note_of(
        source, tmp_path / "out", tokenizer=write_tokenizer(tmp_path / "other", template=None)
    )
    assert (note.vocabulary_size, note.has_template) == (6, False)


def test_without_the_packages_the_command_that_helps_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_file, "is_gguf_available", lambda: False)
    with pytest.raises(ResourceError, match=r"pip install 'equilibrate\[import\]'"):
        import_model(file, tmp_path / "out")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r"peft, .*pip install 'equilibrate\[import\]'"):
        import_model(file, tmp_path / "out", adapter=adapter)
    assert IMPORT_NOTE not in {path.name for path in tmp_path.rglob("*")}
