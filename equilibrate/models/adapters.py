"""A PEFT adapter merged into the weights of its base."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from equilibrate.errors import DataError, ResourceError
from equilibrate.models.folders import ADAPTER_FILE, read_object
from equilibrate.models.heads import trial_tokens
from equilibrate.models.names import tied_names
from equilibrate.models.skeleton import first_line

TOLERANCE = 1e-3
"""Of logits, relative and absolute, between the base with its adapter and what is merged."""


def merge_adapter(base: Any, folder: Path) -> Any:
    """The base with the adapter's change added to its weights, in the dtype the base had.

    Args: folder: found mergeable.
    Raises: DataError if the adapter belongs to another model, or changes a head that the base
        shares with its embeddings.
    """
    import peft

    dtype = base.dtype
    base.float()  # sums of small numbers: rounded once, at the end
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(base, peft.PeftConfig.from_pretrained(str(folder)))
            loaded = adapted.load_adapter(str(folder), "default")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(
            f"{folder}: does not fit a {type(base).__name__} of this size ({first_line(error)}); "
            "give the base that it was trained on"
        ) from error
    if odd := sorted([*loaded.missing_keys, *loaded.unexpected_keys]):
        raise DataError(
            f"{folder}: its weights and {ADAPTER_FILE} do not match ({odd[0]} first of "
            f"{len(odd)}); give the base that it was trained on, and the files as PEFT saved them"
        )
    tokens = trial_tokens(base)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = adapted.eval()(input_ids=tokens).logits
        merged = adapted.merge_and_unload(safe_merge=True)
        found = merged(input_ids=tokens).logits
    is_apart = bool(tied_names(merged)) != merged.config.get_text_config().tie_word_embeddings
    if is_apart or not torch.allclose(found, wanted, TOLERANCE, TOLERANCE):
        raise DataError(
            f"{folder}: cannot be merged into this base, and most likely because it changes the "
            "head, which is one tensor with the embeddings here; give a base with "
            "tie_word_embeddings=false and a head of its own"
        )
    return merged.to(dtype)


def require_mergeable(folder: Path) -> None:
    """Refuse, before anything is loaded, what is no LoRA of a policy.

    Raises: DataError naming file and key; ResourceError if peft is not installed.
    """
    if not (folder / ADAPTER_FILE).is_file():
        raise DataError(f"{folder}: holds no {ADAPTER_FILE}; give a folder that PEFT has saved")
    settings = read_object(folder / ADAPTER_FILE)
    kind, task = settings.get("peft_type"), settings.get("task_type")
    if kind != "LORA":
        raise DataError(
            f"{folder / ADAPTER_FILE}: peft_type ({kind!r}) must be 'LORA'; merge it where it was "
            "made (merge_and_unload, save_pretrained) and import that folder"
        )
    if task not in (None, "CAUSAL_LM"):
        raise DataError(
            f"{folder / ADAPTER_FILE}: task_type ({task!r}) must be 'CAUSAL_LM': a policy's"
        )
    if find_spec("peft") is None:
        raise ResourceError(
            f"{folder}: adapters are merged by the package peft, which is not installed; run "
            "pip install 'equilibrate[import]'"
        )
