"""What the three kinds of training before PPO minimise, and how good a scorer turned out to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from equilibrate.data.sequences import encode
from equilibrate.data.tables import SFT_COLUMNS, load_columns, load_pair_labels
from equilibrate.errors import DataError
from equilibrate.models.log_probs import token_log_probs
from equilibrate.offline.batches import Pairs, encode_pairs, split_held_out
from equilibrate.preference.losses import (
    ranking_hits,
    sft_loss,
    sign_hits,
    token_cost_loss,
    token_reward_loss,
)
from equilibrate.preference.spans import comparison_span, hold_end_scores
from equilibrate.types import ScorerKind

HELD_OUT_FRACTION = 0.05
_SCORE_INIT_STD = 0.02


class Objective(Protocol):
    """Rows are numbers of the tokenized data set; `lengths` steers how they are batched."""

    module: nn.Module
    model: PreTrainedModel
    lengths: NDArray[np.int64]

    def loss(self, forward: nn.Module, rows: NDArray[np.int64], shard: slice) -> Tensor:
        """This rank's part of the mean over `rows`, the global batch."""

    def calibrate(self, forward: nn.Module, batch_size: int) -> dict[str, float]:
        """Quality on held-out rows; empty where there is nothing to measure."""


class TokenLogits(nn.Module):
    """[B, T] ids -> [B, T, V] logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


class TokenScores(nn.Module):
    """[B, T] ids -> [B, T] scores of the prefix that ends at each token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        scores: Tensor = self.model.score(hidden).squeeze(-1).float()
        return scores


class SftObjective:
    """Next-token loss on responses.

    Prompts carry no loss: a policy is never asked to write one, and in a set of labelled prompts
    the loss would teach how often each kind of request occurs.
    """

    def __init__(self, model_folder: Path, dataset: Path, *, max_length: int) -> None:
        table = load_columns(dataset, SFT_COLUMNS)
        tokenizer = load_tokenizer(model_folder)
        self.model = AutoModelForCausalLM.from_pretrained(
            model_folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        self.module: nn.Module = TokenLogits(self.model)
        self.data = encode(
            tokenizer,
            table["prompt"][:],
            table["response"][:],
            max_length=min(max_length, self.model.config.max_position_embeddings),
        )
        self.lengths = self.data.lengths

    def loss(self, forward: nn.Module, rows: NDArray[np.int64], shard: slice) -> Tensor:
        num_tokens = int(np.maximum(self.lengths[rows] - self.data.prompt_lengths[rows], 0).sum())
        ids, mask = self.data.padded(rows[shard])
        starts = torch.from_numpy(self.data.prompt_lengths[rows[shard], None])
        response_mask = mask & (torch.arange(ids.shape[1]) >= starts)
        ids, response_mask = _to_device_of(forward, ids, response_mask)
        log_probs = token_log_probs(forward(ids), ids)
        return sft_loss(log_probs, response_mask, num_tokens=num_tokens)

    def calibrate(self, forward: nn.Module, batch_size: int) -> dict[str, float]:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """Two responses to each of B prompts, padded to one T, already scored."""

    high: Tensor
    """[B, T] scores, held after each end."""
    low: Tensor
    span: Tensor
    """[B, T] bool, where the two are compared."""
    signs: Tensor
    """[B, 2] of (high, low)."""

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.high[:, -1], self.low[:, -1]


class ScorerObjective:
    """Safe-RLHF loss of a reward or cost model, at every compared token or at the end only."""

    def __init__(
        self,
        kind: ScorerKind,
        base_folder: Path,
        preferences: Path,
        *,
        token_wise: bool,
        regularization: float,
        max_length: int,
        seed: int,
    ) -> None:
        tokenizer = load_tokenizer(base_folder)
        self.model = load_scorer(base_folder, tokenizer, seed=seed)
        self.kind = kind
        self.token_wise = token_wise
        self.regularization = regularization
        self.module: nn.Module = TokenScores(self.model)
        self.pairs = _load_pairs(
            kind,
            preferences,
            tokenizer,
            max_length=min(max_length, self.model.config.max_position_embeddings),
        )
        num_pairs = len(self.pairs.high.lengths)
        self.train_rows, self.held_out_rows = split_held_out(
            num_pairs, fraction=HELD_OUT_FRACTION, seed=seed
        )
        longest = np.maximum(self.pairs.high.lengths, self.pairs.low.lengths)
        self.lengths = longest[self.train_rows]

    def loss(self, forward: nn.Module, rows: NDArray[np.int64], shard: slice) -> Tensor:
        batch = self._score(forward, self.train_rows[rows[shard]])
        high, low, span = batch.high, batch.low, batch.span
        if not self.token_wise:
            # The last column holds the end scores: compared alone, it is the sequence-wise loss.
            high, low, span = high[:, -1:], low[:, -1:], torch.ones_like(span[:, -1:])
        if self.kind == "reward":
            return token_reward_loss(
                high, low, span, regularization=self.regularization, num_pairs=len(rows)
            )
        return token_cost_loss(
            low,
            high,
            batch.signs[:, 1],
            batch.signs[:, 0],
            span,
            regularization=self.regularization,
            num_pairs=len(rows),
        )

    @torch.no_grad()
    def calibrate(self, forward: nn.Module, batch_size: int) -> dict[str, float]:
        """Accuracies and mean end scores of the held-out pairs, against the labels as given."""
        rows = self.held_out_rows
        batches = [
            self._score(forward, rows[start : start + batch_size])
            for start in range(0, len(rows), batch_size)
        ]
        high, low = (torch.cat(side) for side in zip(*(b.ends for b in batches), strict=True))
        figures = {
            "num_pairs": float(len(rows)),
            "ranking_accuracy": ranking_hits(high, low).item() / len(rows),
            "score_std": torch.cat([high, low]).std(correction=0).item(),
        }
        if self.kind == "reward":
            return figures | {"better_mean": high.mean().item(), "worse_mean": low.mean().item()}
        costs, signs = torch.cat([high, low]), torch.cat([b.signs for b in batches]).T.flatten()
        figures["sign_accuracy"] = sign_hits(costs, signs).item() / len(costs)
        # A side without a single response has no mean; leaving it out is not the same as 0.
        sides = {"unsafe_mean": costs[signs > 0], "safe_mean": costs[signs < 0]}
        return figures | {name: side.mean().item() for name, side in sides.items() if len(side)}

    def _score(self, forward: nn.Module, rows: NDArray[np.int64]) -> PairBatch:
        """One forward pass over both responses of each pair."""
        both = [side.padded(rows) for side in (self.pairs.high, self.pairs.low)]
        width = max(ids.shape[1] for ids, _ in both)
        ids, mask = (
            torch.cat([nn.functional.pad(side[i], (0, width - side[i].shape[1])) for side in both])
            for i in (0, 1)
        )
        signs = torch.from_numpy(self.pairs.signs[rows])
        ids, mask, signs = _to_device_of(forward, ids, mask, signs)
        high, low = hold_end_scores(forward(ids), mask).chunk(2)
        span = comparison_span(*ids.chunk(2), *mask.chunk(2))
        return PairBatch(high=high, low=low, span=span, signs=signs)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if tokenizer.eos_token_id is None:
        raise DataError(f"{folder}: the tokenizer must have an eos_token; it ends every response")
    return tokenizer


def load_scorer(
    base_folder: Path, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> PreTrainedModel:
    """The base model with a fresh bias-free head `score` in place of its vocabulary head."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base_folder,
        num_labels=1,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise DataError(
            f"{base_folder}: a {type(model).__name__} has no linear head `score`; use a causal "
            f"model such as Llama or Qwen"
        )
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=_SCORE_INIT_STD, generator=generator)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def _load_pairs(
    kind: ScorerKind, preferences: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> Pairs:
    table, high_ids, signs = load_pair_labels(kind, preferences)
    try:
        return encode_pairs(tokenizer, table, high_ids, signs, max_length=max_length)
    except DataError as error:
        raise DataError(f"{preferences}: {error}") from None


def _to_device_of(module: nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
    device = next(module.parameters()).device
    return tuple(tensor.to(device, non_blocking=True) for tensor in tensors)
