"""A reward or cost model at the start of its training: a causal model with a head of its own."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from equilibrate.errors import DataError
from equilibrate.models.device import Accelerator
from equilibrate.models.loading import load_policy, name_labels, require_plain_score
from equilibrate.models.scorer import ScoreModel, TwinScoreModel
from equilibrate.models.sidecar import ScorerSidecar
from equilibrate.types import ScorerKind

HEAD_INIT_STD = 0.02


def new_scorer(
    folder: str | Path,
    kind: ScorerKind,
    accelerator: Accelerator,
    *,
    seed: int,
    pad_token_id: int | None,
) -> ScoreModel:
    """The trunk of a causal model with a fresh linear head `score`, without a bias.

    Args:
        seed: of the head, drawn with standard deviation 0.02.
        pad_token_id: written into the model's settings: transformers finds the last token by it.
    Raises: DataError as `load_policy`, or if the library has no such head for this kind of model.
    """
    model = _with_heads(folder, 1, accelerator, seed=seed, pad_token_id=pad_token_id)
    scorer = ScoreModel(model, ScorerSidecar(kind=kind), accelerator)
    return scorer.to(accelerator.torch_device).eval()


def new_twin_scorer(
    folder: str | Path,
    kinds: Sequence[ScorerKind],
    accelerator: Accelerator,
    *,
    seed: int,
    pad_token_id: int | None,
) -> TwinScoreModel:
    """As `new_scorer`, with a head of each kind."""
    model = _with_heads(folder, len(kinds), accelerator, seed=seed, pad_token_id=pad_token_id)
    name_labels(model, kinds)
    heads = [ScorerSidecar(kind=kind) for kind in kinds]
    return TwinScoreModel(model, heads, accelerator).to(accelerator.torch_device).eval()


def _with_heads(
    folder: str | Path,
    num_heads: int,
    accelerator: Accelerator,
    *,
    seed: int,
    pad_token_id: int | None,
) -> Any:
    causal = load_policy(folder, accelerator).model
    config = deepcopy(causal.config)
    config.num_labels, config.pad_token_id = num_heads, pad_token_id
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise DataError(f"{folder}: transformers has no scorer of this kind ({error})") from None
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        raise DataError(
            f"{folder}: a {type(model).__name__} has no linear head `score` without a bias; use a "
            "causal model such as Llama or Qwen"
        )
    setattr(model, model.base_model_prefix, causal.base_model)
    model.score = nn.Linear(head.in_features, num_heads, bias=False)
    nn.init.normal_(
        model.score.weight, std=HEAD_INIT_STD, generator=torch.Generator().manual_seed(seed)
    )
    # Drawn on the CPU, so that it is the same everywhere.
    model.score.to(model.get_input_embeddings().weight.device)
    require_plain_score(folder, model.eval())
    return model
