"""One rank of the learner: the policy and its critics, if it has any, each a DeepSpeed engine.

Every rank receives all rollouts of an iteration, runs the models on its share of the rows, and
exchanges the results once; from there on each rank knows the whole batch (`learner_targets`). In a
minibatch a rank again learns from its share, and losses are divided by global token counts, so the
result does not depend on how many ranks there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from actors.engine import (
    DeepSpeedModel,
    export_model,
    join_group,
    model_weights,
    trained_weights,
)
from actors.weights import PackedWeights, pack_adapter, pack_weights
from equilibrate.config.base import TextConfig
from equilibrate.config.train import AmaConfig, LearnerConfig, PPOConfig
from equilibrate.learning.average import WeightAverage
from equilibrate.learning.parity import parity_gap, require_parity
from equilibrate.learning.passes import Critic, Passes
from equilibrate.learning.ptx import PtxData
from equilibrate.learning.targets import (
    batch_metrics,
    make_train_batch,
    staleness_metrics,
)
from equilibrate.learning.update import LossSettings, Update
from equilibrate.models.device import Accelerator, Device, Dtype
from equilibrate.models.frozen import share_frozen
from equilibrate.models.loading import load_policy, load_twin_scorer
from equilibrate.models.names import folder_aliases, folder_tensors
from equilibrate.models.new_scorer import new_twin_scorer
from equilibrate.models.scorer import TwinScoreModel
from equilibrate.models.trainable import prepare_training
from equilibrate.ppo.batches import Indices, ScoredBatch, collate
from equilibrate.ppo.learning_rates import schedule
from equilibrate.seeds import derive_seed
from equilibrate.text.renderer import Renderer, load_tokenizer
from equilibrate.text.vocabulary import start_of_critic
from equilibrate.types import ScoredRollout, ScorerKind, TokenBatch, TrainBatch, UpdateMetrics

VALUES: Mapping[ScorerKind, str] = {"reward": "values", "cost": "cost_values"}
"""The field of a `TokenBatch` that holds what a critic's head of a kind says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """What a learner rank needs to know of a run."""

    policy: str
    """Model folders; the critics start as the reward and cost models. Where these read no tokens of
    the policy they start as the policy, with a head of their own."""
    reward: str
    """Empty: no critic."""
    cost: str
    """Empty: no cost critic."""
    ptx: str
    """Data set folder; read only if `learner.ptx_coef` is above 0."""
    device: Device
    dtype: Dtype
    cpu_threads: int
    seed: int
    iterations: int
    """Length of the run, over which the learning rates fall."""
    temperature: float
    text: TextConfig
    max_length: int
    """Tokens to which pretraining text is cut."""
    parity_tolerance: float | None
    """None: that of the dtype."""
    learner: LearnerConfig
    ppo: PPOConfig
    ama: AmaConfig | None

    @property
    def critics(self) -> list[tuple[ScorerKind, ...]]:
        """The heads of each."""
        kinds = tuple(kind for kind in VALUES if getattr(self, kind))
        return [kinds] if self.learner.two_headed_critic else [(kind,) for kind in kinds]


class LearnerWorker:
    """One rank. Its process must have RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._accelerator = Accelerator(settings.device, settings.dtype)
        self._accelerator.prepare(threads=settings.cpu_threads)
        join_group(self._accelerator)
        policy = load_policy(settings.policy, self._accelerator)
        self._aliases = folder_aliases(policy.model)
        self._policy = self._trained(policy, settings.learner.policy_lr)
        self._critics: dict[tuple[ScorerKind, ...], DeepSpeedModel] = {}
        for kinds in settings.critics:
            critic = _new_critic(settings, kinds, self._accelerator)
            rate = settings.learner.critic_lr
            self._critics[kinds] = self._trained(critic, rate, beside=self._policy)
        self._passes = Passes(
            policy=self._policy,
            critics=[
                Critic(model, [VALUES[kind] for kind in kinds])
                for kinds, model in self._critics.items()
            ],
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            max_tokens_per_batch=settings.learner.max_tokens_per_batch,
            temperature=settings.temperature,
            device=self._accelerator.torch_device,
        )
        self._average: WeightAverage | None = None
        if settings.learner.average_decay:
            self._average = WeightAverage(
                settings.learner.average_decay,
                model_weights(self._policy),
                keeps=dist.get_rank() == 0,
            )
        self._ptx = None
        if settings.learner.ptx_coef > 0:
            self._ptx = PtxData(
                settings.ptx, Renderer(settings.policy, settings.text), settings.max_length
            )

    def _trained(
        self, module: nn.Module, learning_rate: float, *, beside: DeepSpeedModel | None = None
    ) -> DeepSpeedModel:
        """Args: beside: holds some of the frozen weights already."""
        settings = self._settings
        prepare_training(module, settings.learner, self._accelerator, seed=settings.seed)
        if beside is not None and settings.learner.zero_stage < 3:  # which cuts weights up
            share_frozen(module, beside.module)
        return DeepSpeedModel(
            module,
            learning_rate,
            zero_stage=settings.learner.zero_stage,
            minibatch_size=settings.ppo.minibatch_size,
            adam_epsilon=settings.learner.adam_epsilon,
        )

    @property
    def _models(self) -> dict[str, DeepSpeedModel]:
        critics = {
            "critic" if "reward" in kinds else "cost_critic": model
            for kinds, model in self._critics.items()
        }
        return {"policy": self._policy, **critics}

    @property
    def _has_cost_advantages(self) -> bool:
        return not self._settings.ppo.has_critics or bool(self._settings.cost)

    def update(
        self,
        scored: Sequence[ScoredRollout],
        *,
        iteration: int,
        multiplier: float,
        kl_coef: float,
    ) -> UpdateMetrics:
        """All epochs and minibatches of one iteration; every rank returns the same metrics.

        Args:
            multiplier: lambda >= 0; with a critic but no cost critic it has no effect.
        Returns: `skipped` if all rollouts have a score that is not finite, or a log-prob or a value
            is not (nothing moved), or if a loss or gradient becomes so in a later minibatch (it and
            its followers are left out). Single rollouts with such a score are left out alone.
        Raises: ParityError, before anything moves, if the learner's log-probs of the sampled tokens
            differ from the generator's by more than the tolerance.
        """
        settings, ptx = self._settings, self._ptx
        values = {"learning_rate": self._set_learning_rates(iteration)}
        if all(one.broken for one in scored):
            return UpdateMetrics(values=values, skipped=True)
        lengths = np.array([len(s.rollout.token_ids) for s in scored])
        batch = _collated(scored, settings, self._accelerator)
        is_only_step = ptx is None and settings.ppo.takes_one_step(len(scored))
        before, graphs = self._passes.before(batch, lengths, is_only_step=is_only_step)
        if not all(bool(tensor.isfinite().all()) for tensor in before.values()):
            return UpdateMetrics(values=values, skipped=True)
        entropies = before.pop("entropies")
        tokens = batch.with_learner_outputs(**before)
        is_stale = any(s.rollout.policy_version != iteration for s in scored)
        if not is_stale:
            values |= _in_parity(tokens, settings, iteration)
        is_weighed = is_stale or settings.ppo.importance == "always"
        values |= staleness_metrics(tokens) if is_weighed else {}
        train = make_train_batch(
            tokens,
            multiplier=multiplier if self._has_cost_advantages else 0.0,
            kl_coef=kl_coef,
            ppo=settings.ppo,
            ama=settings.ama,
            is_weighed=is_weighed,
            seed=derive_seed(settings.seed, iteration),
        )
        values |= batch_metrics(train, entropies)
        learned, skipped = self._learn(train, lengths, iteration, graphs)
        return UpdateMetrics(values=values | learned, skipped=skipped)

    def _learn(
        self,
        train: TrainBatch,
        lengths: Indices,
        iteration: int,
        graphs: Mapping[str, Tensor] | None,
    ) -> tuple[dict[str, float], bool]:
        """As `Update.run`; the average follows what was learned."""
        update = Update(
            self._passes,
            train,
            lengths,
            _losses(self._settings),
            iteration=iteration,
            ptx=self._ptx,
            graphs=graphs,
        )
        learned, skipped = update.run()
        if self._average is not None and not skipped:
            self._average.update(model_weights(self._policy))
        return learned, skipped

    def _set_learning_rates(self, iteration: int) -> float:
        """Sets every model's rate for this iteration and returns the policy's."""
        learner = self._settings.learner
        share = schedule(learner.lr_schedule, iteration / self._settings.iterations)
        self._policy.set_learning_rate(learner.policy_lr * share)
        for critic in self._critics.values():
            critic.set_learning_rate(learner.critic_lr * share)
        return learner.policy_lr * share

    def pack_weights(self, *, averaged: bool = False) -> tuple[PackedWeights | None, int]:
        """The policy for the generators, on rank 0, or its adapter alone; and this rank, as a
        receipt for the caller.

        Args: averaged: the average of its weights in place of the last ones, where one is kept.
        """
        adapter, rank = self._settings.learner.adapter, self._passes.rank
        if averaged and self._average is not None:
            adapter, weights = None, self._average.named_weights()
        elif adapter is None:
            weights = model_weights(self._policy)
        else:
            weights = trained_weights(self._policy)
        if rank:
            for _ in weights:
                pass
            return None, rank
        if adapter is not None:
            return pack_adapter(weights, adapter), rank
        named = folder_tensors(self._policy.module.model, weights)
        return pack_weights(named, aliases=self._aliases), rank

    def save(self, folder: str | Path) -> None:
        """Write models, optimizers and this rank's random state; all ranks must call."""
        for name, model in self._models.items():
            model.save(Path(folder) / name)
        if self._average is not None:
            self._average.save(Path(folder))
        torch.save(self._accelerator.rng_state(), self._rng_file(folder))
        dist.barrier()

    def load(self, folder: str | Path) -> None:
        """Continue from `save` with the same number of ranks and ZeRO stage, bit by bit."""
        for name, model in self._models.items():
            model.load(Path(folder) / name)
        if self._average is not None:
            self._average.load(Path(folder))
        self._accelerator.set_rng_state(torch.load(self._rng_file(folder)))

    def _rng_file(self, folder: str | Path) -> Path:
        return Path(folder) / f"rng_rank{self._passes.rank}.pt"

    def export(self, folder: str | Path, *, averaged: bool = False) -> None:
        """Write the policy as a Hugging Face folder with its tokenizer; all ranks must call.

        Args: averaged: as of `pack_weights`.
        """
        weights = self._average.named_weights() if averaged and self._average is not None else None
        adapter, start = self._settings.learner.adapter, self._settings.policy
        export_model(self._policy, folder, tokenizer=start, weights=weights, adapter=adapter)


def _new_critic(
    settings: LearnerSettings, kinds: Sequence[ScorerKind], accelerator: Accelerator
) -> TwinScoreModel:
    """A head of each kind, as the scorers begin or with fresh ones on the policy's trunk."""
    scorers = [getattr(settings, kind) for kind in kinds]
    start = start_of_critic(settings.policy, scorers)
    if start in scorers:
        return load_twin_scorer(start, kinds, accelerator)
    pad = load_tokenizer(settings.policy).pad_token_id
    seed = derive_seed(settings.seed, "reward" not in kinds)
    return new_twin_scorer(settings.policy, kinds, accelerator, seed=seed, pad_token_id=pad)


def _collated(
    scored: Sequence[ScoredRollout], settings: LearnerSettings, accelerator: Accelerator
) -> ScoredBatch:
    """On the rank's device."""
    batch = collate(
        scored,
        pad_token_id=0,
        ungated=settings.ama.ungated if settings.ama else (),
        truncated=settings.ppo.truncated,
    )
    device = accelerator.torch_device
    return ScoredBatch(**{f.name: getattr(batch, f.name).to(device) for f in fields(batch)})


def _in_parity(tokens: TokenBatch, settings: LearnerSettings, iteration: int) -> dict[str, float]:
    """Raises: ParityError."""
    gap, tolerance = parity_gap(tokens), settings.parity_tolerance
    require_parity(gap, dtype=settings.dtype, tolerance=tolerance, iteration=iteration)
    return {"parity_gap_nats": gap.largest, "parity_gap_mean_nats": gap.mean}


def _losses(settings: LearnerSettings) -> LossSettings:
    ppo, ama = settings.ppo, settings.ama
    return LossSettings(
        minibatch_size=ppo.minibatch_size,
        epochs=ppo.epochs,
        clip_range=ppo.clip_range,
        value_clip_range=ppo.value_clip_range,
        mean_over=ppo.mean_over,
        divide_by_kept=ama is not None and ama.normalizer == "kept",
        ptx_coef=settings.learner.ptx_coef,
        seed=settings.seed,
    )
