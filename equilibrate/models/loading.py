"""A model folder to a model: whole, as its config says, and with nothing made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from equilibrate.errors import DataError
from equilibrate.models.attention import attention_for
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import Role
from equilibrate.models.heads import is_causal, is_plain_head, trial_tokens
from equilibrate.models.policy import PolicyModel
from equilibrate.models.scorer import ScoreModel, TwinScoreModel
from equilibrate.models.sidecar import place_of, read_heads
from equilibrate.models.skeleton import first_line, refuse_gaps, skeleton
from equilibrate.types import ScorerKind


def load_policy(folder: str | Path, accelerator: Accelerator) -> PolicyModel:
    """The policy or its frozen reference, float32, without dropout.

    Raises: DataError as `folders.check_folder`.
    """
    model = _load(folder, "policy", accelerator)
    return PolicyModel(model, accelerator).to(accelerator.torch_device).eval()


def load_scorer(folder: str | Path, kind: ScorerKind, accelerator: Accelerator) -> ScoreModel:
    """A reward or cost model in the units its sidecar states, float32, without dropout.

    Raises: DataError as `folders.check_folder`, or if a score depends on anything but a linear head
        on the state of the last token.
    """
    heads = read_heads(Path(folder), kind=kind)
    place, sidecar = place_of(kind, heads, Path(folder))
    model = _load(folder, kind, accelerator)
    require_plain_score(folder, model)
    if len(heads) > 1:
        _keep_head(model, place)
    return ScoreModel(model, sidecar, accelerator).to(accelerator.torch_device).eval()


def load_twin_scorer(folder: str | Path, accelerator: Accelerator) -> TwinScoreModel:
    """All heads of a scorer, in the order of its sidecar. Raises: as `load_scorer`."""
    heads = read_heads(Path(folder))
    model = _load(folder, heads[0].kind, accelerator)
    require_plain_score(folder, model)
    return TwinScoreModel(model, heads, accelerator).to(accelerator.torch_device).eval()


def _keep_head(model: Any, place: int) -> None:
    head = nn.Linear(model.score.in_features, 1, bias=False)
    head.weight = nn.Parameter(model.score.weight[place : place + 1].detach().clone())
    model.score = head
    model.config.num_labels = model.num_labels = 1


def require_plain_score(folder: str | Path, model: Any) -> None:
    """Raise DataError unless a score is a linear head on the last token's state and no more."""
    if not (is_plain_head(model, model.score, trial_tokens(model)[:1]) and is_causal(model)):
        raise DataError(
            f"{folder}: the score of a {type(model).__name__} is not its head `score` on the last "
            "token's state, or that state depends on later tokens; give a causal model with "
            "nothing between its last layer and the head"
        )


def _load(folder: str | Path, role: Role, accelerator: Accelerator) -> Any:
    expected = skeleton(folder, role)
    try:
        model, found = type(expected).from_pretrained(
            folder,
            config=expected.config,
            dtype=torch.float32,
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
