"""A model without its numbers: built on the meta device, filled with shapes from file headers.

Whatever transformers renames, splits, joins or ties on the way from a folder to a model, it does to
the shapes as well: nobody else has to know how a kind of model spells its tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from equilibrate.errors import DataError
from equilibrate.models.folders import CONFIG_FILE, Role, read_config, tensor_shapes
from equilibrate.models.sidecar import SIDECAR_FILE, num_heads


def skeleton(folder: str | Path, role: Role) -> Any:
    """The model of a folder on the meta device: its class, config, names, ties and shapes.

    Raises: DataError if the folder does not hold exactly this model, or none for this role.
    """
    entries = read_config(folder)
    if role != "policy":
        count = num_heads(Path(folder))
        _require_labels(Path(folder) / CONFIG_FILE, entries, count)
        return fitted(folder, role, tensor_shapes(folder), num_labels=count)
    return fitted(folder, role, tensor_shapes(folder))


def fitted(
    folder: str | Path,
    role: Role,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    num_labels: int = 1,
) -> Any:
    """As `skeleton`, of tensors that are not in the folder yet, or not by these names.

    Raises: DataError if they are not exactly those of the model that config.json describes.
    """
    model = build_empty(folder, role, num_labels=num_labels)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    # What `from_pretrained` does, which itself wants another library before it uses this device.
    plan = LoadStateDictConfig(
        device_map={"": "meta"}, weight_mapping=get_model_conversion_mapping(model)
    )
    with _quiet():
        found, _ = convert_and_load_state_dict_in_model(model, tensors, plan)
        model.mark_tied_weights_as_initialized(found)
        model.tie_weights(missing_keys=found.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(found)
    refuse_gaps(folder, role, model, found.to_dict())
    if role != "policy" and not isinstance(getattr(model, "score", None), nn.Linear):
        raise DataError(
            f"{folder}: a {type(model).__name__} has no linear head named score; give a causal "
            "sequence-classification model, of Llama or Qwen for example"
        )
    return model


def refuse_gaps(folder: str | Path, role: Role, model: Any, found: dict[str, Any]) -> None:
    """Raise DataError unless the weights were exactly those of the model.

    Args:
        found: `missing_keys`, `unexpected_keys` and `mismatched_keys`, as `from_pretrained` gives
            them with `output_loading_info`.
    """
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    mismatched = sorted(found["mismatched_keys"])
    if not (missing or unexpected or mismatched):
        return
    faults = []
    if missing:
        faults.append(f"{_some(missing)} missing from the weights")
    if unexpected:
        faults.append(f"{_some(unexpected)} in the weights and not in the model")
    if mismatched:
        name, given, wanted = mismatched[0]
        faults.append(f"{name} has shape {tuple(given)}, the model {tuple(wanted)}")
    raise DataError(
        f"{folder}: as a {role} model ({type(model).__name__}): {'; '.join(faults)}; "
        f"{_remedy(role, missing, unexpected)}"
    )


def _remedy(role: Role, missing: Collection[str], unexpected: Collection[str]) -> str:
    if role == "policy":
        return "give the folder of a causal model as save_pretrained writes it"
    if "score.bias" in unexpected:
        return f"add the bias to `bias` in {SIDECAR_FILE} and delete the tensor"
    if "score.weight" not in missing:
        return "save the scorer again with save_pretrained"
    if heads := [name for name in unexpected if not name.startswith(("lm_head.", "embed_out."))]:
        return f"if {heads[0]} is its head, of shape (1, hidden size), rename it to score.weight"
    return f"a causal model has no scores: train a {role} model from it"


def _require_labels(path: Path, entries: dict[str, Any], wanted: int) -> None:
    # transformers leaves out that there are two, its default; and we take what says nothing as one.
    num_labels = entries.get("num_labels", len(entries.get("id2label") or range(wanted)))
    if num_labels == wanted:
        return
    if wanted > 1:
        raise DataError(
            f"{path}: num_labels ({num_labels}) must be {wanted}, as many as {SIDECAR_FILE} has "
            "heads; copy both files again"
        )
    raise DataError(
        f"{path}: num_labels ({num_labels}) must be 1: a score is one number, and which of "
        f"{num_labels} it would be is not said; train a model with num_labels=1, or "
        "of two make one by `python -m equilibrate scorer`"
    )


def build_empty(
    folder: str | Path, role: Role, *, num_labels: int = 1, device: str = "meta"
) -> Any:
    """The model that a folder's config.json describes; no weight is looked at.

    Raises: DataError if transformers knows none for this role.
    """
    options = {} if role == "policy" else {"num_labels": num_labels}
    kind = AutoModelForCausalLM if role == "policy" else AutoModelForSequenceClassification
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
        with torch.device(device):
            return kind.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: no model that can be a {role} ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for what takes no time."""
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()
