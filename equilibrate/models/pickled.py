"""Weights in `.bin` files, of which the tensors are read and nothing else is run; and weights that
are either those or safetensors."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from equilibrate.errors import DataError
from equilibrate.models.folders import read_object, tensor_shapes, weight_files

PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = f"{PICKLED_FILE}.index.json"


def is_pickled(folder: Path) -> bool:
    """Whether such files are the folder's only weights."""
    named = any((folder / name).exists() for name in (PICKLED_FILE, PICKLED_INDEX))
    return named and not any(folder.glob("*.safetensors"))


def pickled_files(folder: Path) -> list[Path]:
    """Raises: DataError if the index is damaged or names a file that is not there."""
    if not (folder / PICKLED_INDEX).exists():
        return [folder / PICKLED_FILE]
    names = read_object(folder / PICKLED_INDEX).get("weight_map")
    if not isinstance(names, Mapping) or not names:
        raise DataError(f"{folder / PICKLED_INDEX}: weight_map must map tensors to files")
    present = {file.name for file in folder.glob("*.bin")}
    if missing := sorted(set(map(str, names.values())) - present):
        raise DataError(f"{folder / PICKLED_INDEX}: names {missing[0]}, which is not beside it")
    return [folder / name for name in sorted(set(names.values()))]


def unpickle(file: Path) -> dict[str, Tensor]:
    """Tensors by name. Raises: DataError if the file is damaged or holds anything else."""
    try:
        found = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can end in any of them
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{file}: not a file of tensors alone ({reason}); copy it again, or save the model as "
            "safetensors where you trust it"
        ) from error
    if not isinstance(found, Mapping):
        raise DataError(f"{file}: must map names to tensors, holds a {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise DataError(f"{file}: {name!r} is a {type(value).__name__}, and must be a tensor")
    return {str(name): tensor for name, tensor in found.items()}


def files_of_weights(folder: Path) -> list[Path]:
    """Of either form. Raises: DataError if there are none, or one is missing."""
    return pickled_files(folder) if is_pickled(folder) else weight_files(folder)


def tensors_of_file(file: Path) -> dict[str, Tensor]:
    """None shares its memory with another. Raises: DataError as `unpickle`."""
    if file.suffix == ".safetensors":
        return load_file(file)
    # Tied tensors share their memory there, which safetensors does not write.
    return {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in unpickle(file).items()
    }


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """`tensor_shapes` of weights of either form."""
    if not is_pickled(folder):
        return tensor_shapes(folder)
    parts = (unpickle(file) for file in pickled_files(folder))
    return {name: tuple(tensor.shape) for part in parts for name, tensor in part.items()}


def read_tensors(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Those that are there, and no other is read."""
    found: dict[str, Tensor] = {}
    for file in files_of_weights(folder):
        if file.suffix != ".safetensors":
            part = unpickle(file)
            found |= {name: part[name] for name in names if name in part}
            continue
        with safe_open(file, framework="pt") as tensors:
            present = set(tensors.keys())
            found |= {name: tensors.get_tensor(name) for name in names if name in present}
    return found
