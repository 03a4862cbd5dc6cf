"""The passes of one update over a batch, whatever trains the models underneath.

A rank runs models on its share of the rows only. What it learns there is exchanged once before the
first minibatch and summed once at the end; in between only gradients travel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from equilibrate.learning.passes import Passes
from equilibrate.models.trainable import Trainable
from equilibrate.ppo.batches import Indices, minibatch_indices
from equilibrate.ppo.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    policy_sums,
    ptx_loss,
    tokens_by_sequence,
)
from equilibrate.seeds import derive_seed
from equilibrate.types import TrainBatch


class PtxRows(Protocol):
    def draw(self, num_rows: int, seed: int) -> tuple[Tensor, Tensor]: ...


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    """Rows of both, padded on the right to one width."""
    width = max(first.shape[1], second.shape[1])
    return torch.cat([pad(rows, (0, width - rows.shape[1])) for rows in (first, second)])


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """The numbers of the losses and of the schedule of minibatches."""

    minibatch_size: int
    epochs: int
    clip_range: float
    value_clip_range: float
    mean_over: Literal["tokens", "sequences"]
    divide_by_kept: bool
    """The policy loss is a mean over kept tokens, or the same sum over all response tokens."""
    ptx_coef: float
    seed: int


class Update:
    """All epochs and minibatches of one iteration."""

    def __init__(
        self,
        passes: Passes,
        train: TrainBatch,
        lengths: Indices,
        settings: LossSettings,
        *,
        iteration: int,
        ptx: PtxRows | None,
        graphs: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Args: graphs: as `Passes.before` returns it."""
        self._passes = passes
        self._train = train
        self._lengths = lengths
        self._settings = settings
        self._iteration = iteration
        self._ptx = ptx
        self._graphs = graphs
        self._num_kept = train.gradient_mask.sum(1).cpu().numpy()
        self._num_response = train.tokens.response_mask.sum(1).cpu().numpy()
        self._sums: dict[str, Tensor] = {}
        self._grad_norms: list[float] = []

    def run(self) -> tuple[dict[str, float], bool]:
        """Learn from every minibatch until one is not finite, which is left out with its followers.

        Returns: the metrics, one answer on all ranks, and whether something was left out.
        """
        num_done = num_clippable = 0
        finished = True
        for rows, ptx_seed in self._minibatches():
            if not self._num_response[rows].any():
                # All its rollouts were left out: momentum alone must not move a critic.
                continue
            finished = self._learn(rows, ptx_seed)
            if not finished:
                for model in self._passes.models:
                    model.discard()
                break
            num_done += 1
            num_clippable += int(self._num_kept[rows].sum())
        if num_done == 0:
            return {}, not finished
        sums = self._reduced_sums()
        num_clipped = sums.pop("num_clipped", 0.0)
        metrics = {name: total / num_done for name, total in sums.items()}
        metrics["clip_fraction"] = num_clipped / max(1, num_clippable)
        metrics["grad_norm"] = sum(self._grad_norms) / max(1, len(self._grad_norms))
        return metrics, not finished

    def _minibatches(self) -> Iterator[tuple[Indices, int]]:
        """Rows of each minibatch, and the seed of its pretraining rows."""
        run_seed, iteration = self._settings.seed, self._iteration
        if self._graphs is not None:
            # In the order of the pass before, whose outputs are differentiated.
            yield np.arange(len(self._lengths)), derive_seed(run_seed, iteration)
            return
        for epoch in range(self._settings.epochs):
            order = minibatch_indices(
                len(self._lengths),
                self._settings.minibatch_size,
                derive_seed(run_seed, iteration, epoch),
            )
            for number, rows in enumerate(order):
                yield rows, derive_seed(run_seed, iteration, epoch, number)

    def _learn(self, rows: Indices, ptx_seed: int) -> bool:
        """One optimiser step of every model; False if a number is not finite on any rank."""
        passes = self._passes
        ptx = None
        if self._ptx is not None:
            ptx = PtxShare.draw(self._ptx, len(rows), ptx_seed, passes)
        # A momentum left from earlier steps must not move the policy where no token may.
        has_policy_step = ptx is not None or bool(self._num_kept[rows].any())
        chunks = passes.micro_batches(rows, ptx.widths(self._lengths) if ptx else self._lengths)
        num_seen = 0
        for number, chunk in enumerate(chunks):
            part = MicroBatch.of(self._train, chunk, self._lengths, passes.device)
            texts = ptx.part(num_seen, num_seen + len(chunk)) if ptx else None
            num_seen += len(chunk)
            for model, loss in self._losses(part, rows, has_policy_step, texts):
                if not passes.all_finite(loss):
                    return False
                model.backward(loss, is_last=number == len(chunks) - 1)
        if has_policy_step:
            self._grad_norms.append(passes.policy.step())
        critic_norms = [model.step() for model in passes.models[1:]]
        return bool(np.isfinite([*self._grad_norms, *critic_norms]).all())

    def _losses(
        self, part: MicroBatch, rows: Indices, has_policy_step: bool, ptx: PtxPart | None
    ) -> Iterator[tuple[Trainable, Tensor]]:
        """One at a time: only one model's activations are in memory, unless all were kept."""
        num_tokens = self._counts(self._num_response, part, rows)
        for critic in self._passes.critics:
            found = critic.values(part.token_ids) if self._graphs is None else self._graphs
            losses = [
                self._value_loss(name, found[name], part, num_tokens) for name in critic.fields
            ]
            # One backward pass for all heads.
            yield critic.model, torch.stack(losses).sum()
        if has_policy_step:
            yield self._passes.policy, self._policy_loss(part, rows, ptx)

    def _value_loss(
        self, field: str, values: Tensor, part: MicroBatch, num_tokens: int | Tensor
    ) -> Tensor:
        name, old_values, returns = {
            "values": ("value_loss", part.values, part.returns),
            "cost_values": ("cost_value_loss", part.cost_values, part.cost_returns),
        }[field]
        loss = clipped_value_loss(
            values,
            old_values,
            returns,
            part.response_mask,
            value_clip_range=self._settings.value_clip_range,
            num_tokens=num_tokens,
        )
        self._add(name, loss)
        return loss

    def _policy_loss(self, part: MicroBatch, rows: Indices, ptx: PtxPart | None) -> Tensor:
        settings = self._settings
        divisors = self._num_kept if settings.divide_by_kept else self._num_response
        log_probs, ptx_log_probs = self._log_probs(part, ptx)
        loss = clipped_policy_loss(
            log_probs,
            part.old_log_probs,
            part.advantages,
            part.gradient_mask,
            clip_range=settings.clip_range,
            num_tokens=self._counts(divisors, part, rows),
        )
        self._add("policy_loss", loss)
        kept = policy_sums(
            log_probs, part.old_log_probs, part.gradient_mask, clip_range=settings.clip_range
        )
        self._add("num_clipped", kept.clipped)
        self._add("approx_kl", kept.approx_kl / max(1, int(self._num_kept[rows].sum())))
        if ptx is None or ptx_log_probs is None:
            return loss
        text_loss = ptx_loss(ptx_log_probs, ptx.mask, num_tokens=ptx.num_tokens)
        self._add("ptx_loss", text_loss)
        return loss + settings.ptx_coef * text_loss

    def _counts(self, per_row: Indices, part: MicroBatch, rows: Indices) -> int | Tensor:
        """What a loss of `part` divides its sums by: tokens of all `rows` of the minibatch, or of
        each row of the part."""
        if self._settings.mean_over == "tokens":
            return int(per_row[rows].sum())
        # A row without a response was left out.
        num_sequences = int((self._num_response[rows] > 0).sum())
        of_part = torch.from_numpy(per_row[part.rows]).to(self._passes.device)
        return tokens_by_sequence(of_part, num_sequences)

    def _log_probs(self, part: MicroBatch, ptx: PtxPart | None) -> tuple[Tensor, Tensor | None]:
        """Of the kept tokens, and of the pretraining text; the others cost the head nothing, unless
        the outputs are those of the pass before."""
        if self._graphs is not None:
            return self._graphs["old_log_probs"], None
        policy, temperature = self._passes.policy, self._passes.temperature
        if ptx is None:
            log_probs, _ = policy(part.token_ids, part.gradient_mask, temperature)
            return log_probs, None
        # One forward for both: ZeRO-3 follows one forward per backward.
        num_texts = len(ptx.token_ids)
        log_probs, _ = policy(
            _stacked(part.token_ids, ptx.token_ids),
            _stacked(part.gradient_mask, ptx.mask),
            temperature,
            num_texts,
        )
        sampled, texts = log_probs.split([len(part.token_ids), num_texts])
        return sampled[:, : part.token_ids.shape[1]], texts[:, : ptx.token_ids.shape[1]]

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach()
        known = self._sums.get(name)
        self._sums[name] = value if known is None else known + value

    def _reduced_sums(self) -> dict[str, float]:
        """Over ranks; the names, and so the shapes, are the same on all of them."""
        if not self._sums:
            return {}
        totals = torch.stack(list(self._sums.values()))
        if self._passes.world_size > 1:
            dist.all_reduce(totals)
        return dict(zip(self._sums, totals.tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What the losses of a few rows read, cut to the longest of them: [b, t]."""

    rows: Indices
    """[b], their places in the batch."""
    token_ids: Tensor
    response_mask: Tensor
    gradient_mask: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    values: Tensor
    returns: Tensor
    cost_values: Tensor
    cost_returns: Tensor

    @classmethod
    def of(
        cls, train: TrainBatch, rows: Indices, lengths: Indices, device: torch.device
    ) -> MicroBatch:
        index = torch.from_numpy(rows).to(device)
        length = int(lengths[rows].max())

        def take(tensor: Tensor) -> Tensor:
            return tensor[index, :length]

        tokens = train.tokens
        return cls(
            rows=rows,
            token_ids=take(tokens.token_ids),
            response_mask=take(tokens.response_mask),
            gradient_mask=take(train.gradient_mask),
            old_log_probs=take(tokens.old_log_probs),
            advantages=take(train.advantages),
            values=take(tokens.values),
            returns=take(train.returns),
            cost_values=take(tokens.cost_values),
            cost_returns=take(train.cost_returns),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PtxPart:
    """Pretraining rows of one micro-batch: [b, t]."""

    token_ids: Tensor
    mask: Tensor
    num_tokens: int
    """Learned tokens of the global minibatch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PtxShare:
    """One rank's pretraining rows of one minibatch: as many as it has rollouts."""

    token_ids: Tensor
    mask: Tensor
    num_tokens: int

    @classmethod
    def draw(cls, rows: PtxRows, num_rows: int, seed: int, passes: Passes) -> PtxShare:
        token_ids, mask = rows.draw(num_rows, seed)
        own = slice(passes.rank, None, passes.world_size)
        return cls(
            token_ids=token_ids[own].to(passes.device),
            mask=mask[own].to(passes.device),
            num_tokens=int(mask.sum()),
        )

    def widths(self, lengths: Indices) -> Indices:
        """Tokens that each rollout takes of a pass: a text of the same width comes beside it."""
        return 2 * np.maximum(lengths, self.token_ids.shape[1])

    def part(self, start: int, stop: int) -> PtxPart:
        return PtxPart(
            token_ids=self.token_ids[start:stop],
            mask=self.mask[start:stop],
            num_tokens=self.num_tokens,
        )
