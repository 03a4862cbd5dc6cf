"""A GGUF file read by transformers, and what transformers does not say about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM
from transformers.utils.import_utils import is_accelerate_available, is_gguf_available

from equilibrate.errors import DataError, ResourceError
from equilibrate.models.skeleton import first_line, refuse_gaps
from equilibrate.text.renderer import load_tokenizer

_MAGIC = b"GGUF"
# What llama.cpp calls the ways of cutting text before byte-level BPE, by what they do. Those that
# transformers knows besides are in a table of its own; any other it takes for GPT-2's.
_LIKE_GPT_2 = ("gpt-2", "mpt", "olmo")
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a file says of itself."""

    quantization: str
    """For example `Q4_1`; empty if no tensor is quantised."""
    tensor_kinds: str
    """Their numbers by kind, the most common first."""
    license: str
    has_tokenizer: bool
    cutting: str
    """How text is cut before byte-level BPE; empty for tokenizers of another kind."""


def is_gguf(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(_MAGIC)) == _MAGIC


def read_header(file: Path) -> GgufHeader:
    """Raises: ResourceError if a package is missing; DataError if the file is damaged, a part of
    several or no language model."""
    if not (is_gguf_available() and is_accelerate_available()):
        raise ResourceError(
            f"{file}: GGUF is read with the packages gguf and accelerate, which are not both "
            "installed; run pip install 'equilibrate[import]'"
        )
    from gguf import GGUFReader, LlamaFileType

    try:
        reader = GGUFReader(file)
        facts = {key: _content(reader, key) for key in reader.fields}
        kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file can end in any of them
        raise DataError(f"{file}: damaged ({first_line(error)}); copy it again") from error
    if facts.get("split.count", 1) > 1:
        raise DataError(
            f"{file}: one of {facts['split.count']} parts; join them with llama.cpp's "
            f"llama-gguf-split --merge {file} WHOLE.gguf"
        )
    if (kind := facts.get("general.type", "model")) != "model":
        raise DataError(f"{file}: general.type ({kind!r}) must be 'model'; give the model's file")
    named = facts.get("general.file_type")
    known = {member.value: member.name.removeprefix("MOSTLY_") for member in LlamaFileType}
    blocks = {name: number for name, number in kinds.items() if name not in _PLAIN}
    whole = known.get(named, "") if blocks else ""
    is_bytes = facts.get("tokenizer.ggml.model") == "gpt2"
    return GgufHeader(
        quantization=whole or max(blocks, key=lambda name: blocks[name], default=""),
        tensor_kinds=", ".join(f"{number} {name}" for name, number in kinds.most_common()),
        license=str(facts.get("general.license", "")),
        has_tokenizer="tokenizer.ggml.tokens" in facts,
        cutting=str(facts.get("tokenizer.ggml.pre", "default")) if is_bytes else "",
    )


def load_model(file: Path) -> Any:
    """The model in float32, which holds every number of a quantised file as it is.

    Raises: DataError if transformers cannot read it or it is not whole.
    """
    try:
        model, gaps = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are among the gaps
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"{file}: transformers cannot read it ({first_line(error)})") from error
    refuse_gaps(file, "policy", model, gaps)
    _forget_quantization(model)
    return model


def save_tokenizer(file: Path, header: GgufHeader, out: Path) -> None:
    """Write the file's tokenizer and chat template into a folder.

    Raises: DataError if it cuts text in a way that nobody here knows.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    try:
        tokenizer = load_tokenizer(file.parent, gguf_file=file.name)
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # the libraries raise that and nothing narrower
        raise DataError(
            f"{file}: its tokenizer cannot be built ({first_line(error)}); {_ask_for_another(file)}"
        ) from error
    if header.cutting in _DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    elif header.cutting not in {"", *_LIKE_GPT_2, *GGUF_PRE_TOKENIZER_SPLITS}:
        raise DataError(
            f"{file}: tokenizer.ggml.pre ({header.cutting!r}) is not known here, and text cut in "
            f"another way gives other tokens; {_ask_for_another(file)}"
        )
    tokenizer.save_pretrained(out)


def _ask_for_another(file: Path) -> str:
    return (
        "name a folder that has the model's tokenizer: "
        f"python -m equilibrate import {file} OUT --tokenizer FOLDER"
    )


def _content(reader: Any, key: str) -> Any:
    """Of a field that holds one value; the length of one that holds many."""
    field = reader.fields[key]
    return len(field.data) if len(field.data) > 1 else field.contents()


def _forget_quantization(model: Any) -> None:
    """The numbers are plain ones by now, which transformers does not notice."""
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    for name in ("quantization_method", "_weight_conversions"):
        model.__dict__.pop(name, None)
