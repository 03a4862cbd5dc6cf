"""Weights in `.bin` files, of which the tensors are read and nothing else is run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from equilibrate.errors import DataError
from equilibrate.models.folders import read_object

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
