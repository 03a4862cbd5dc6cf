"""Models and rollouts of the built-in world, untrained, at the shapes of the main job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from equilibrate.learning.scoring import ScoringWorker
from equilibrate.models.device import Accelerator
from equilibrate.models.loading import load_policy
from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from equilibrate.sandbox.data import prompt_rows
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer
from equilibrate.sandbox.world import build_world
from equilibrate.text.renderer import Renderer, load_tokenizer
from equilibrate.types import Category, FinishReason, Prompt, Rollout, ScoredRollout, ScorerKind

SEED = 0
KINDS: tuple[ScorerKind, ...] = ("reward", "cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolders:
    policy: str
    reward: str
    cost: str


def write_models(folder: Path) -> ModelFolders:
    """A policy with its tokenizer, and two scorers of the same body."""
    tokenizer = build_tokenizer()
    return save_models(folder, build_model(tokenizer, seed=SEED), tokenizer)


def write_like(model: Path, folder: Path) -> ModelFolders:
    """The policy of a folder with its tokenizer, and two untrained scorers of its body."""
    policy = load_policy(model, Accelerator("cpu", "float32")).model
    return save_models(folder, policy, load_tokenizer(model))


def save_models(
    folder: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> ModelFolders:
    """The policy, and two untrained scorers of its body, each with the tokenizer."""
    disable_progress_bar()
    folders = ModelFolders(**{name: str(folder / name) for name in ("policy", *KINDS)})
    policy.save_pretrained(folders.policy)
    tokenizer.save_pretrained(folders.policy)
    for number, kind in enumerate(KINDS):
        # Not alike: of a reward that equals its cost the mask would keep no token.
        torch.manual_seed(SEED + number)
        config = deepcopy(policy.config)
        config.num_labels = 1
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
        write_sidecar(folder / kind, ScorerSidecar(kind=kind))
    return folders


def write_prompts(file: Path, num_per_class: int) -> None:
    rows = prompt_rows(build_world(SEED), num_per_class)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_prompts(policy: str, count: int) -> list[Prompt]:
    """Prompts of all classes in turn, as the given model's tokenizer writes them."""
    renderer = Renderer(policy)
    num_classes = len(Category)
    per_class = -(-count // num_classes)
    rows = list(prompt_rows(build_world(SEED), per_class))
    mixed = (rows[c * per_class + i] for i in range(per_class) for c in range(num_classes))
    return [
        Prompt(
            prompt_id=f"p{number}",
            text=str(row["prompt"]),
            token_ids=tuple(renderer.prompt_ids(str(row["prompt"]))),
            category=Category(str(row["category"])),
        )
        for number, row in enumerate(islice(mixed, count))
    ]


def make_rollouts(
    prompts: Sequence[Prompt], *, vocabulary: int, min_tokens: int, max_tokens: int
) -> list[Rollout]:
    """Random responses, their lengths uniform from `min_tokens` to `max_tokens`."""
    rng = np.random.default_rng(SEED)
    rollouts = []
    for prompt in prompts:
        response = rng.integers(0, vocabulary, int(rng.integers(min_tokens, max_tokens + 1)))
        token_ids = np.array((*prompt.token_ids, *response), dtype=np.int64)
        rollouts.append(
            Rollout(
                prompt_id=prompt.prompt_id,
                copy=0,
                category=prompt.category,
                policy_version=0,
                token_ids=token_ids,
                response_mask=np.arange(len(token_ids)) >= len(prompt.token_ids),
                rollout_log_probs=np.zeros(len(token_ids), np.float32),
                finish_reason=FinishReason.STOP,
            )
        )
    return rollouts


def score_rollouts(
    models: ModelFolders, rollouts: Sequence[Rollout], threads: int
) -> list[ScoredRollout]:
    """Scored, and with the reference's log-probs as if the generator had reported them."""
    worker = ScoringWorker(
        reward=models.reward,
        cost=models.cost,
        reference=models.policy,
        device="cpu",
        dtype="float32",
        cpu_threads=threads,
        max_tokens_per_batch=8192,
        temperature=1.0,
    )
    return [
        replace(scored, rollout=replace(scored.rollout, rollout_log_probs=scored.ref_log_probs))
        for scored in worker.score(rollouts)
    ]
