"""The models of one rank, and how it takes its share of the rows through them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from equilibrate.models.trainable import Trainable
from equilibrate.ppo.batches import (
    Indices,
    ScoredBatch,
    passes_of_rank,
)


@dataclass(frozen=True, slots=True)
class Critic:
    """A model whose heads say what prefixes are worth."""

    model: Trainable
    """Token ids [B, T] in, [B, T, H] out."""
    fields: Sequence[str]
    """Of a `TokenBatch`, which hold what the heads say: values, cost_values."""

    def values(self, token_ids: Tensor) -> dict[str, Tensor]:
        """By field [B, T], of the prefix that ends just before each token; 0 before the first."""
        heads = self.model(token_ids[:, :-1]).unbind(-1)
        return {field: pad(head, (1, 0)) for field, head in zip(self.fields, heads, strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """The models of one rank and how it cuts its rows."""

    policy: Trainable
    critics: Sequence[Critic]
    """Empty where advantages need no values."""
    rank: int
    world_size: int
    max_tokens_per_batch: int
    temperature: float
    device: torch.device

    def micro_batches(self, rows: Indices, lengths: Indices) -> list[Indices]:
        """`passes_of_rank` of this rank."""
        return passes_of_rank(
            rows,
            lengths,
            rank=self.rank,
            world_size=self.world_size,
            max_tokens=self.max_tokens_per_batch,
        )

    def before(
        self, batch: ScoredBatch, lengths: Indices, *, is_only_step: bool = False
    ) -> tuple[dict[str, Tensor], Mapping[str, Tensor] | None]:
        """What the models say before the update, of all rows: each [B, T], 0 where not defined.

        Args:
            batch: tensors on the device.
            is_only_step: the update takes one step, on all rows, so that it would ask the models
                the same once more.
        Returns:
            outputs: old_log_probs and entropies in nats, of response tokens; values and cost_values
                of the prefix that ends before each token, 0 without a critic.
            graphs: the same of this rank's rows, with their graphs; None if there is more
                than one step, if the rows are cut, or if all models together are beyond the budget.
        """
        num_rows, width = batch.token_ids.shape
        num_tokens = math.ceil(num_rows / self.world_size) * int(lengths.max())
        parts = self.micro_batches(np.arange(num_rows), lengths)
        fits = num_tokens * len(self.models) <= self.max_tokens_per_batch
        # ZeRO-3 follows one forward per backward, so there is one graph a model at most.
        is_differentiable = is_only_step and len(parts) == 1 and fits
        names = ("old_log_probs", "entropies", "values", "cost_values")
        found = torch.zeros(len(names), num_rows, width, device=self.device)
        by_name = dict(zip(names, found, strict=True))
        for rows in parts:
            length = int(lengths[rows].max())
            index = torch.from_numpy(rows).to(self.device)
            token_ids = batch.token_ids[index, :length]
            mask = batch.response_mask[index, :length]
            with torch.set_grad_enabled(is_differentiable):
                log_probs, entropies = self.policy(token_ids, mask, self.temperature)
                outputs = {"old_log_probs": log_probs, "entropies": entropies}
                for critic in self.critics:
                    outputs |= critic.values(token_ids)
            for name, output in outputs.items():
                by_name[name][index, :length] = output.detach()
        if self.world_size > 1:
            # Every rank filled its own rows and left the others 0.
            dist.all_reduce(found)
        found = torch.where(batch.response_mask, found, 0.0)
        return dict(zip(names, found, strict=True)), outputs if is_differentiable else None

    def all_finite(self, loss: Tensor) -> bool:
        """Whether the loss is finite on every rank; all ranks get one answer."""
        finite = loss.detach().isfinite()
        if self.world_size == 1:
            return bool(finite)
        flag = finite.float()
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    @property
    def models(self) -> list[Trainable]:
        return [self.policy, *(critic.model for critic in self.critics)]
