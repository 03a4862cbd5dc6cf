"""A model folder looked at from outside: its config.json, its lists of files, their headers.

Nothing here reads a weight, runs code of the folder or asks a question, so a folder can be refused
before anything starts. Weights are safetensors and nothing else: other formats can hold programs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from equilibrate.errors import DataError
from equilibrate.models.sidecar import read_sidecar
from equilibrate.types import ScorerKind

Role = Literal["policy"] | ScorerKind
CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
IMPORT_NOTE = "equilibrate_import.json"
"""Where an imported folder says what it was made of."""
_NUM_EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
"""What kinds of models call the number of their experts."""
_TORCH_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")


def is_adapter_alone(folder: Path) -> bool:
    """Whether a folder is what PEFT saves: an adapter, and no model of its own."""
    return (folder / ADAPTER_FILE).is_file() and not (folder / CONFIG_FILE).exists()


def base_of(folder: Path) -> Path:
    """The model folder that an adapter names as its base, from here or from its own folder.

    Raises: DataError if there is none: nothing is fetched by a name.
    """
    named = named_base(folder)
    for place in (Path(named), folder / named):
        if named and place.is_dir():
            return place
    raise DataError(
        f"{folder}: an adapter has no model of its own, and its base_model_name_or_path "
        f"({named!r}) is no folder here; give the base: {merging_command(folder, named)}"
    )


def named_base(folder: Path) -> str:
    """What an adapter calls its base; empty if it does not."""
    return str(read_object(folder / ADAPTER_FILE).get("base_model_name_or_path") or "")


def merging_command(adapter: Path, base: str) -> str:
    return f"python -m equilibrate import {base or 'BASE'} OUT --adapter {adapter}"


def check_models(policy: str | Path, scorers: Sequence[tuple[str | Path, ScorerKind]] = ()) -> None:
    """`check_folder` of all models of a run, and that the scorers can read the policy's tokens, or
    have a tokenizer of their own.

    Args: scorers: folder and kind of each.
    Raises: DataError, as `check_folder`; or naming both folders.
    """
    from equilibrate.text.vocabulary import other_tokens, require_tokenizers

    sampled = check_folder(policy, "policy")
    for folder, role in scorers:
        num_rows = check_folder(folder, role)
        require_tokenizers(policy, folder)
        if num_rows < sampled and not other_tokens(policy, folder):
            raise DataError(
                f"{folder}: its model knows tokens 0 to {num_rows - 1}, the policy {policy} can "
                f"sample 0 to {sampled - 1}; call resize_token_embeddings({sampled}) on the {role} "
                "model and save it again"
            )


def check_positions(folder: str | Path, length: int) -> None:
    """Refuse a model that cannot read a prompt and response of `length` tokens together.

    Raises: DataError, as `read_config`; or naming the folder and both lengths.
    """
    positions = num_positions(folder)
    if positions is not None and positions < length:
        raise DataError(
            f"{folder}: its model has {positions} positions, and rollout.max_model_len ({length}) "
            f"asks for more; try rollout.max_model_len={positions}"
        )


def check_sampled(folder: str | Path, device: str) -> None:
    """Refuse a policy that the generator cannot follow: vLLM 0.32 starts on it and samples, but
    what it is sent later does not arrive.

    Args: device: `cpu` or `cuda`, of the generator.
    Raises: DataError, as `read_config`; or naming the file, the entry and what to do.
    """
    config = read_config(folder)
    # On a CPU it packs the experts when it starts and goes on with those.
    experts = experts_key(config)
    if experts and device == "cpu":
        raise DataError(
            f"{Path(folder) / CONFIG_FILE}: {experts} ({config[experts]}): on a CPU the generator "
            "keeps the experts that it started with; take a model without experts, or device=cuda"
        )


def experts_key(config: Mapping[str, Any]) -> str | None:
    """The key of a mixture of experts that says how many there are; None of other models."""
    return next((key for key in _NUM_EXPERTS if config.get(key)), None)


def num_positions(folder: str | Path) -> int | None:
    """Tokens that a model reads together at most; None where its config sets no such limit.

    Raises: DataError, as `read_config`.
    """
    config = read_config(folder)
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    # Stretched positions reach further than this number says.
    return positions if isinstance(positions, int) and "factor" not in scaling else None


def check_folder(folder: str | Path, role: Role) -> int:
    """Refuse a folder that cannot be what a run is going to use it as, in about a second.

    A scorer needs its sidecar; every tensor of the model must be in the weights with its shape, and
    no other; the tokenizer, where there is one, must not have more ids than the model has rows.

    Returns: number of token ids that the model knows.
    Raises: DataError that names the folder or file, what is wrong with it and what to do.
    """
    from equilibrate.models.skeleton import skeleton
    from equilibrate.text.vocabulary import has_tokenizer, largest_id

    if role != "policy":
        read_sidecar(Path(folder), kind=role)
    num_rows: int = skeleton(folder, role).get_input_embeddings().num_embeddings
    if has_tokenizer(folder) and (largest := largest_id(folder)) >= num_rows:
        raise DataError(
            f"{folder}: the tokenizer gives ids up to {largest}, the model knows 0 to "
            f"{num_rows - 1}; call resize_token_embeddings({largest + 1}) and save it again"
        )
    return num_rows


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a folder that runs no code of its own and is no adapter.

    Raises: DataError.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a Hugging Face model folder")
    if (folder / ADAPTER_FILE).exists():
        raise DataError(
            f"{folder / ADAPTER_FILE}: adapters are not applied; merge it into the weights "
            f"({merging_command(folder, '')}), or move the adapter's files elsewhere"
        )
    config = read_object(folder / CONFIG_FILE)
    for name in (CONFIG_FILE, "tokenizer_config.json"):
        if (folder / name).exists() and "auto_map" in (entries := read_object(folder / name)):
            raise DataError(
                f"{folder / name}: auto_map ({entries['auto_map']!r}) names code in the folder, "
                "which is never run; if transformers has this kind of model itself, delete the key"
            )
    return config


def tensor_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the folder's weights, from the headers of their files.

    Raises: DataError if there are no safetensors, a file is missing or damaged, or it is not plain
        which files count.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(Path(folder)):
        try:
            with safe_open(file, framework="np") as tensors:
                names = list(tensors.keys())
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except (OSError, SafetensorError) as error:
            raise DataError(f"{file}: not a safetensors file ({error}); copy it again") from None
    return shapes


def stored_dtype(folder: str | Path) -> str:
    """The dtype of all tensors of the folder's weights, as torch calls it; float32 where they have
    several. Raises: DataError as `weight_files`."""
    from safetensors import safe_open

    found: set[str] = set()
    for file in weight_files(Path(folder)):
        with safe_open(file, framework="np") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in list(tensors.keys())}
    return _TORCH_DTYPES.get(found.pop(), "float32") if len(found) == 1 else "float32"


def weight_files(folder: Path) -> list[Path]:
    """The files that both transformers and vLLM read; what they would not agree on is refused."""
    present = {file.name for file in folder.glob("*.safetensors")}
    if (folder / INDEX_FILE).exists():
        weight_map = read_object(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, Mapping) or not weight_map:
            raise DataError(f"{folder / INDEX_FILE}: weight_map must map tensors to files")
        listed = set(weight_map.values())
        if missing := sorted(map(str, listed - present)):
            raise DataError(f"{folder / INDEX_FILE}: names {missing[0]}, which is not beside it")
        if WEIGHT_FILE in present - listed:
            raise DataError(
                f"{folder}: holds {WEIGHT_FILE} and {INDEX_FILE}, which does not name it; "
                "delete the one that is not meant"
            )
        return [folder / name for name in sorted(listed)]
    if not present:
        other = sorted(file.name for pattern in _OTHER_FORMATS for file in folder.glob(pattern))
        found = f"holds {other[0]} and no" if other else "holds no"
        raise DataError(
            f"{folder}: {found} *.safetensors file; weights are read from safetensors alone: load "
            "the model where you trust it and save it with save_pretrained"
        )
    if extra := sorted(present - {WEIGHT_FILE}):
        raise DataError(
            f"{folder}: {extra[0]} is beside {WEIGHT_FILE} or in its place, and no {INDEX_FILE} "
            "says which to read; move it elsewhere"
        )
    return [folder / WEIGHT_FILE]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object. Raises: DataError."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; give a Hugging Face model folder") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(entries, dict):
        raise DataError(f"{path}: must be one JSON object, got {type(entries).__name__}")
    return entries
