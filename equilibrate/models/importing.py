"""A plain model folder of what people bring: GGUF, pickled or sharded weights, a base and adapter.

Everything else in the library reads safetensors, a config and a tokenizer, and nothing more. What
is made here is held to that by the same door, and a note beside the weights says where it is from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from equilibrate.errors import DataError, ResourceError
from equilibrate.models import gguf_file
from equilibrate.models.adapters import merge_adapter, require_mergeable
from equilibrate.models.folders import (
    ADAPTER_FILE,
    CONFIG_FILE,
    IMPORT_NOTE,
    Role,
    base_of,
    check_folder,
    is_adapter_alone,
    merging_command,
    named_base,
    read_config,
    read_object,
    tensor_shapes,
    weight_files,
)
from equilibrate.models.names import tied_names
from equilibrate.models.pickled import is_pickled, pickled_files, unpickle
from equilibrate.models.sidecar import SIDECAR_FILE
from equilibrate.models.skeleton import build_empty, first_line, refuse_gaps, skeleton
from equilibrate.text.renderer import Renderer, load_tokenizer
from equilibrate.text.vocabulary import PROBES, has_tokenizer

GENERATION_FILE = "generation_config.json"
SHARD_SIZE = "5GB"
_COMMAND = "python -m equilibrate import"
_TEXT_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_PAPERS = ("LICENSE*", "NOTICE*", "README.md")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportNote:
    """Where a model folder comes from and what it holds; `equilibrate_import.json` in it."""

    source: str
    """Name of the file or folder that was read."""
    kind: str
    """`GGUF`, `safetensors` or `pickled`."""
    quantization: str
    """As a GGUF file names it, for example `Q4_1`; empty if the source is not quantised."""
    stored_as: str
    """Tensors of a GGUF file by the kind of their numbers; else the dtype of the source."""
    adapter: str
    """What was merged into the weights; empty for none."""
    license: str
    """As a GGUF file states it; empty if it does not."""
    architecture: str
    dtype: str
    num_tensors: int
    num_parameters: int
    is_head_tied: bool
    vocabulary_size: int
    has_template: bool
    fingerprint: str
    """SHA-256 over everything that was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What an import reads, found to be of a known kind before anything is loaded."""

    path: Path
    kind: str
    adapter: Path | None
    tokenizer: Path | None

    @property
    def files(self) -> list[Path]:
        if self.kind == "GGUF":
            read = [self.path]
        else:
            listed = weight_files if self.kind == "safetensors" else pickled_files
            read = [*listed(self.path), *texts_of(self.path)]
        for folder in filter(None, (self.adapter, self.tokenizer)):
            read += [*texts_of(folder), *sorted(folder.glob("adapter_model.*"))]
        return read


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A whole model in memory, and what only its source can tell of it."""

    model: Any
    save_tokenizer: Callable[[Path], None]
    stored_as: str
    quantization: str = ""
    license: str = ""


def import_model(
    source: Path, out: Path, *, adapter: Path | None = None, tokenizer: Path | None = None
) -> tuple[ImportNote, bool]:
    """Make the folder `out`, whole or not at all.

    Args:
        source: a GGUF file, a folder with config.json and safetensors or pytorch_model.bin, or a
            PEFT folder whose base is a folder here.
        adapter: a PEFT folder, merged into the weights.
        tokenizer: a folder whose tokenizer and chat template are taken in place of the source's.
    Returns: the note, and False where `out` was made of the very same files before.
    Raises: DataError naming what cannot be read, with what would help; ResourceError for a package
        that is not installed or a disk too small.
    """
    read = recognise(source, adapter=adapter, tokenizer=tokenizer)
    fingerprint = fingerprint_of(read.files)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _made_before(out, read, fingerprint), False
    whole = out.resolve()
    partial_out = whole.with_name(f".{whole.name}.importing")
    shutil.rmtree(partial_out, ignore_errors=True)  # of an import that was killed
    partial_out.mkdir(parents=True)
    try:
        note = _write(read, partial_out, fingerprint)
        os.replace(partial_out, whole)
    except DataError as error:
        raise DataError(str(error).replace(str(partial_out), str(source))) from error
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    return note, True


def recognise(
    source: Path, *, adapter: Path | None = None, tokenizer: Path | None = None
) -> Source:
    """Tell by what is there, and refuse what nobody could import, before anything is loaded."""
    if adapter is None and is_adapter_alone(source):
        source, adapter = base_of(source), source
    if adapter is not None:
        require_mergeable(adapter)
    if tokenizer is not None and not has_tokenizer(tokenizer):
        raise DataError(f"{tokenizer}: holds no tokenizer; give a folder with tokenizer.json")
    if source.is_file():
        kind = "GGUF" if gguf_file.is_gguf(source) else ""
        if not kind:
            raise DataError(
                f"{source}: not a GGUF file; of other formats give the folder that holds "
                f"{CONFIG_FILE} and the weights"
            )
    else:
        kind = _kind_of_folder(source)
    return Source(path=source, kind=kind, adapter=adapter, tokenizer=tokenizer)


def describe(note: ImportNote, out: Path) -> str:
    """What an import did, in a few lines."""
    quantised = f", quantised as {note.quantization}" if note.quantization else ""
    adapter = f", with the adapter {note.adapter} merged in" if note.adapter else ""
    template = "with a chat template" if note.has_template else "no chat template: plain text"
    head = "tied to the embeddings" if note.is_head_tied else "of its own"
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    return (
        f"source      {note.source}: {note.kind}{quantised} ({note.stored_as}){adapter}\n"
        f"model       {note.architecture}, {note.num_parameters / 1e6:.1f} million parameters in "
        f"{note.num_tensors} tensors, {note.dtype}, head {head}\n"
        f"tokenizer   {note.vocabulary_size} tokens, {template}\n"
        f"folder      {out}, {size:.0f} MB"
    )


def _kind_of_folder(folder: Path) -> str:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such file or folder; give a GGUF file or a model folder")
    if (folder / ADAPTER_FILE).exists():  # beside a model, which may be its base or not
        base = named_base(folder)
        raise DataError(
            f"{folder}: an adapter has no model of its own; give its base, {base or 'BASE'}, too: "
            f"{merging_command(folder, base)}"
        )
    if files := sorted(folder.glob("*.gguf")):
        raise DataError(f"{folder}: holds {files[0].name}; try {_COMMAND} {files[0]} OUT")
    config = read_config(folder)
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "of an unknown kind")
        raise DataError(
            f"{folder / CONFIG_FILE}: quantization_config ({method}): only GGUF is read quantised; "
            "give the model in float32, float16 or bfloat16"
        )
    if is_pickled(folder):
        return "pickled"
    weight_files(folder)  # refuses what has none
    return "safetensors"


def _made_before(out: Path, read: Source, fingerprint: str) -> ImportNote:
    if not (out / IMPORT_NOTE).is_file():
        raise DataError(f"{out}: exists and is not empty; give a folder that does not exist yet")
    entries = read_object(out / IMPORT_NOTE)
    if set(entries) != {one.name for one in fields(ImportNote)}:
        raise DataError(f"{out / IMPORT_NOTE}: not a note of an import; give another folder")
    note = ImportNote(**entries)
    if note.fingerprint != fingerprint:
        raise DataError(
            f"{out}: holds an import of {note.source} made of other files than {read.path} has "
            "now; give another folder, or remove this one first"
        )
    _check(out, _role(read_config(out)))
    return note


def _write(read: Source, out: Path, fingerprint: str) -> ImportNote:
    found = _load_gguf(read) if read.kind == "GGUF" else _load_folder(read)
    model = found.model
    if read.adapter:
        model = merge_adapter(model, read.adapter)
    _require_space(model, out)
    tensors = dict(model.named_parameters())
    model.save_pretrained(out, max_shard_size=SHARD_SIZE)
    found.save_tokenizer(out)
    if read.path.is_dir():
        papers = [file for pattern in _PAPERS for file in read.path.glob(pattern)]
        # As it is: what transformers would write of it lacks what it holds to be unusual.
        kept = [read.path / name for name in (GENERATION_FILE, SIDECAR_FILE)]
        for file in [*papers, *filter(Path.is_file, kept)]:
            shutil.copyfile(file, out / file.name)
    tokenizer = load_tokenizer(out)
    note = ImportNote(
        source=read.path.resolve().name,
        kind=read.kind,
        quantization=found.quantization,
        stored_as=found.stored_as,
        adapter=read.adapter.resolve().name if read.adapter else "",
        license=found.license,
        architecture=type(model).__name__,
        dtype=dtype_name(model.dtype),
        num_tensors=len(tensors),
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        is_head_tied=bool(tied_names(model)),
        vocabulary_size=len(tokenizer),
        has_template=bool(tokenizer.chat_template),
        fingerprint=fingerprint,
    )
    (out / IMPORT_NOTE).write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")
    for file in out.iterdir():
        file.chmod((out / IMPORT_NOTE).stat().st_mode)  # safetensors closes its files to the group
    _check(out, _role(read_config(out)))
    return note


def _check(folder: Path, role: Role) -> None:
    """The door of `train`. A scorer may have no sidecar yet: of it only the weights are checked."""
    if role == "policy":
        check_folder(folder, role)
        Renderer(folder).prompt_ids("Hello")
    else:
        skeleton(folder, role)


def _load_gguf(read: Source) -> _Found:
    header = gguf_file.read_header(read.path)
    if read.tokenizer is None and not header.has_tokenizer:
        raise DataError(
            f"{read.path}: has no tokenizer in it; name a folder that has the model's: "
            f"{_COMMAND} {read.path} OUT --tokenizer FOLDER"
        )
    save = partial(gguf_file.save_tokenizer, read.path, header)
    if read.tokenizer is not None:
        save = partial(_save_tokenizer, read.tokenizer)
    return _Found(
        model=gguf_file.load_model(read.path),
        save_tokenizer=save,
        quantization=header.quantization,
        stored_as=header.tensor_kinds,
        license=header.license,
    )


def _load_folder(read: Source) -> _Found:
    places = (read.tokenizer, read.adapter, read.path)
    folder = next((place for place in places if place and has_tokenizer(place)), None)
    if folder is None:
        raise DataError(
            f"{read.path}: holds no tokenizer; name a folder that has the model's: "
            f"{_COMMAND} {read.path} OUT --tokenizer FOLDER"
        )
    role = _role(read_config(read.path))
    empty = build_empty(read.path, role)
    tensors = _read_weights(read)
    dtype = _common_dtype(read.path, tensors)
    try:
        model, gaps = type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict=tensors,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are among the gaps
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{read.path}: not a model folder ({first_line(error)})") from error
    refuse_gaps(read.path, role, model, gaps)
    return _Found(
        model=model,
        save_tokenizer=partial(_save_tokenizer, folder),
        stored_as=", ".join(sorted({dtype_name(tensor.dtype) for tensor in tensors.values()})),
    )


def _role(config: Mapping[str, Any]) -> Role:
    names = config.get("architectures") or [""]
    return "reward" if names[0].endswith("ForSequenceClassification") else "policy"


def _read_weights(read: Source) -> dict[str, Tensor]:
    if read.kind == "safetensors":
        tensor_shapes(read.path)  # names a file that is damaged
        parts = map(load_file, weight_files(read.path))
    else:
        parts = map(unpickle, pickled_files(read.path))
    return {name: tensor for part in parts for name, tensor in part.items()}


def _common_dtype(folder: Path, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The narrowest that holds every number as it is."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point}
    if odd := sorted(map(dtype_name, kinds - set(_FLOATS))) or ([] if kinds else ["none"]):
        raise DataError(
            f"{folder}: weights of {odd[0]} are not read; give the model in float32, float16 or "
            "bfloat16"
        )
    return reduce(torch.promote_types, kinds)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _save_tokenizer(folder: Path, out: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(out)
    saved = load_tokenizer(out)
    is_same = saved.get_vocab() == tokenizer.get_vocab()
    is_same &= saved.chat_template == tokenizer.chat_template
    if not is_same or any(
        saved(text)["input_ids"] != tokenizer(text)["input_ids"] for text in PROBES
    ):
        raise DataError(
            f"{folder}: its tokenizer is another one after save_pretrained; save it as "
            "tokenizer.json with the library it comes from"
        )


def _require_space(model: Any, out: Path) -> None:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    if (free := shutil.disk_usage(out).free) < needed:
        raise ResourceError(
            f"{out.parent}: {needed / 1e9:.1f} GB are to be written and {free / 1e9:.1f} GB are "
            "free; free space or give another folder"
        )


def texts_of(folder: Path) -> list[Path]:
    """Config, tokenizer and template: what a model folder holds beside its weights."""
    return sorted(file for file in folder.iterdir() if file.suffix in _TEXT_SUFFIXES)


def fingerprint_of(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of these files."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        whole.update(f"{file.name} {digest}\n".encode())
    return whole.hexdigest()
