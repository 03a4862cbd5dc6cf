"""A model folder to a model: whole, as its config says, and with nothing made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equilibrate.errors import DataError
from equilibrate.models.attention import attention_for
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import Role, stored_dtype
from equilibrate.models.heads import is_causal, is_plain_head, trial_tokens
from equilibrate.models.policy import PolicyModel
from equilibrate.models.scorer import ScoreModel, TwinScoreModel
from equilibrate.models.sidecar import ScorerSidecar, place_of, read_heads
from equilibrate.models.skeleton import first_line, refuse_gaps, skeleton
from equilibrate.types import ScorerKind


def load_policy(folder: str | Path, accelerator: Accelerator) -> PolicyModel:
    """The policy or its frozen reference, float32, without dropout.

    Raises: DataError as `folders.check_folder`.
    """
    model = _load(folder, "policy", accelerator)
    return PolicyModel(model, accelerator).to(accelerator.torch_device).eval()


def read_policy(folder: str | Path) -> Any:
    """The policy's model, not to be run: its weights are views of the file, in the file's dtype.

    Raises: DataError as `folders.check_folder`.
    """
    dtype: torch.dtype = getattr(torch, stored_dtype(folder))
    return _load(folder, "policy", Accelerator("cpu", "float32"), dtype)


def load_scorer(folder: str | Path, kind: ScorerKind, accelerator: Accelerator) -> ScoreModel:
    """A reward or cost model in the units its sidecar states, float32, without dropout.

    Raises: DataError as `folders.check_folder`, or if a score depends on anything but a linear head
        on the state of the last token.
    """
    model, sidecars = _with_heads(folder, [kind], accelerator)
    return ScoreModel(model, sidecars[0], accelerator).to(accelerator.torch_device).eval()


def load_twin_scorer(
    folder: str | Path, kinds: Sequence[ScorerKind], accelerator: Accelerator
) -> TwinScoreModel:
    """Heads of these kinds, in this order. Raises: as `load_scorer`."""
    model, sidecars = _with_heads(folder, kinds, accelerator)
    return TwinScoreModel(model, sidecars, accelerator).to(accelerator.torch_device).eval()


def _with_heads(
    folder: str | Path, kinds: Sequence[ScorerKind], accelerator: Accelerator
) -> tuple[Any, list[ScorerSidecar]]:
    heads = read_heads(Path(folder), kind=kinds[0])
    found = [place_of(kind, heads, Path(folder)) for kind in kinds]
    model = _load(folder, kinds[0], accelerator)
    require_plain_score(folder, model)
    places = [place for place, _ in found]
    if places != list(range(len(heads))):
        head = nn.Linear(model.score.in_features, len(places), bias=False)
        head.weight = nn.Parameter(model.score.weight[places].detach().clone())
        model.score, model.num_labels = head, len(places)
        name_labels(model, kinds)
    return model, [sidecar for _, sidecar in found]


def name_labels(model: Any, kinds: Sequence[ScorerKind]) -> None:
    """In the model's settings; one alone has no name there."""
    model.config.num_labels = len(kinds)
    if len(kinds) > 1:
        model.config.id2label = dict(enumerate(kinds))
        model.config.label2id = {kind: label for label, kind in enumerate(kinds)}


def require_plain_score(folder: str | Path, model: Any) -> None:
    """Raise DataError unless a score is a linear head on the last token's state and no more."""
    if not (is_plain_head(model, model.score, trial_tokens(model)[:1]) and is_causal(model)):
        raise DataError(
            f"{folder}: the score of a {type(model).__name__} is not its head `score` on the last "
            "token's state, or that state depends on later tokens; give a causal model with "
            "nothing between its last layer and the head"
        )


def _load(
    folder: str | Path,
    role: Role,
    accelerator: Accelerator,
    dtype: torch.dtype = torch.float32,
) -> Any:
    expected = skeleton(folder, role)
    try:
        model, found = type(expected).from_pretrained(
            folder,
            config=expected.config,
            dtype=dtype,
            attn_implementation=attention_for(expected, accelerator),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{folder}: not a model folder ({first_line(error)})") from error
    refuse_gaps(folder, role, expected, found)
    if apart := set(expected.all_tied_weights_keys) - set(model.all_tied_weights_keys):
        raise DataError(
            f"{folder}/config.json: tie_word_embeddings must be false: the weights hold a "
            f"{min(apart)} of their own, and the generator would use the embeddings instead"
        )
    return model
