"""PPO-Lagrangian with AMA as a plain PyTorch script would write it: the reference of `update`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from actors.engine import ADAM_BETAS, MAX_GRAD_NORM
from actors.learner import LearnerSettings
from equilibrate.learning.targets import make_train_batch
from equilibrate.models.device import Accelerator
from equilibrate.models.loading import load_policy, load_scorer
from equilibrate.models.log_probs import token_entropies, token_log_probs
from equilibrate.ppo.batches import Indices, collate, minibatch_indices, token_budget_batches
from equilibrate.ppo.losses import clipped_policy_loss, clipped_value_loss
from equilibrate.seeds import derive_seed
from equilibrate.types import ScoredRollout, TrainBatch


class BareLearner:
    """Three models, three optimizers, one loop; on CPU, in bfloat16 under autocast."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._accelerator = accelerator = Accelerator("cpu", settings.dtype)
        self.policy = load_policy(settings.policy, accelerator).model
        self.critic = load_scorer(settings.reward, "reward", accelerator)
        self.cost_critic = load_scorer(settings.cost, "cost", accelerator)
        self._settings = settings
        rates = (settings.learner.policy_lr, *[settings.learner.critic_lr] * 2)
        self._models: list[nn.Module] = [self.policy, self.critic, self.cost_critic]
        self._optimizers = [
            torch.optim.AdamW(m.parameters(), lr=lr, betas=ADAM_BETAS, weight_decay=0.0, fused=True)
            for m, lr in zip(self._models, rates, strict=True)
        ]

    def update(
        self, scored: Sequence[ScoredRollout], *, iteration: int, multiplier: float, kl_coef: float
    ) -> None:
        settings, ppo = self._settings, self._settings.ppo
        batch = collate(scored, pad_token_id=0)
        lengths = np.array([len(s.rollout.token_ids) for s in scored])
        firsts = np.array([int(s.rollout.response_mask.argmax()) for s in scored])
        found = torch.zeros(3, *batch.token_ids.shape)
        for rows in self._micro_batches(np.arange(len(scored)), lengths):
            length = int(lengths[rows].max())
            outputs = self._before(batch.token_ids[rows, :length], int(firsts[rows].min()))
            for target, output in zip(found, outputs, strict=True):
                target[rows, :length] = output
        old_log_probs, values, cost_values = torch.where(batch.response_mask, found, 0.0)
        train = make_train_batch(
            batch.with_learner_outputs(
                old_log_probs=old_log_probs, values=values, cost_values=cost_values
            ),
            multiplier=multiplier,
            kl_coef=kl_coef,
            ppo=ppo,
            ama=settings.ama,
            is_weighed=any(s.rollout.policy_version != iteration for s in scored),
            seed=derive_seed(settings.seed, iteration),
        )
        for epoch in range(ppo.epochs):
            seed = derive_seed(settings.seed, iteration, epoch)
            for rows in minibatch_indices(len(scored), ppo.minibatch_size, seed):
                num_tokens = int(train.tokens.response_mask[rows].sum())
                num_kept = int(train.gradient_mask[rows].sum())
                for part in self._micro_batches(rows, lengths):
                    span = int(firsts[part].min()), int(lengths[part].max())
                    for loss in self._losses(train, part, span, num_tokens, num_kept):
                        loss.backward()
                self._step()

    def _micro_batches(self, rows: Indices, lengths: Indices) -> list[Indices]:
        max_tokens = self._settings.learner.max_tokens_per_batch
        return [rows[part] for part in token_budget_batches(lengths[rows].tolist(), max_tokens)]

    @torch.no_grad()
    def _before(self, token_ids: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = self._logits(token_ids, first)
        # The entropy is reported, so it is part of the work.
        token_entropies(logits, token_ids[:, first - 1 :])
        return (
            _suffix_log_probs(logits, token_ids, first),
            _values(self.critic, token_ids),
            _values(self.cost_critic, token_ids),
        )

    def _losses(
        self,
        train: TrainBatch,
        rows: Indices,
        span: tuple[int, int],
        num_tokens: int,
        num_kept: int,
    ) -> Iterator[Tensor]:
        first, length = span
        tokens, ppo = train.tokens, self._settings.ppo
        token_ids = tokens.token_ids[rows, :length]
        mask = tokens.response_mask[rows, :length]
        for critic, old_values, returns in (
            (self.critic, tokens.values, train.returns),
            (self.cost_critic, tokens.cost_values, train.cost_returns),
        ):
            yield clipped_value_loss(
                _values(critic, token_ids),
                old_values[rows, :length],
                returns[rows, :length],
                mask,
                value_clip_range=ppo.value_clip_range,
                num_tokens=num_tokens,
            )
        yield clipped_policy_loss(
            _suffix_log_probs(self._logits(token_ids, first), token_ids, first),
            tokens.old_log_probs[rows, :length],
            train.advantages[rows, :length],
            train.gradient_mask[rows, :length],
            clip_range=ppo.clip_range,
            num_tokens=num_kept,
        )

    def _logits(self, token_ids: Tensor, first: int) -> Tensor:
        """Of the positions that predict a response token of any row."""
        num_logits = token_ids.shape[1] - first + 1
        with self._accelerator.autocast():
            outputs = self.policy(input_ids=token_ids, use_cache=False, logits_to_keep=num_logits)
        logits: Tensor = outputs.logits.float()
        return logits

    def _step(self) -> None:
        for model, optimizer in zip(self._models, self._optimizers, strict=True):
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()


def _suffix_log_probs(logits: Tensor, token_ids: Tensor, first: int) -> Tensor:
    """[B, T], of tokens `first` on; 0 before."""
    return pad(token_log_probs(logits, token_ids[:, first - 1 :]), (first - 1, 0))


def _values(critic: nn.Module, token_ids: Tensor) -> Tensor:
    """[B, T], of the prefix that ends just before each token."""
    return pad(critic(token_ids[:, :-1]), (1, 0))
