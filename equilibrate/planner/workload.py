"""What a run has to do: model, rollouts of an iteration, GPUs and how they are divided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

LENGTH_SIGMA = 0.8
"""Spread of the logarithm of response lengths; no source publishes it, so it is an assumption."""
NUM_QUANTILES = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Sizes of a causal language model, weights in bfloat16."""

    name: str
    num_parameters: float
    num_active: float
    """Parameters that one token passes through; all of them unless experts are routed."""
    num_layers: int
    hidden_size: int
    attention_width: float
    """Heads times their width, averaged over the layers (0 for those with linear attention)."""
    kv_heads: int
    """1 where all heads share one latent, as in multi-head latent attention."""
    kv_bytes_per_token: float
    num_experts: int = 1
    experts_per_token: int = 1
    moe_layers: int = 0

    @property
    def weight_bytes(self) -> float:
        return 2.0 * self.num_parameters

    def touched_bytes(self, num_sequences: float) -> float:
        """Weights that a decode step reads.

        An expert is read if any sequence is routed to it: 1 - (1 - k / E) ^ B of them on average.
        """
        if not self.moe_layers:
            return self.weight_bytes
        share = self.experts_per_token / self.num_experts
        experts = (self.num_parameters - self.num_active) / (1.0 - share)
        hit = 1.0 - (1.0 - share) ** num_sequences
        return float(2.0 * (self.num_parameters - experts + experts * hit))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Response lengths in tokens: log-normal, cut at `longest`, with the given mean after the cut.

    `sigma` 0 gives every response the mean.
    """

    mean: float
    longest: int
    sigma: float = LENGTH_SIGMA

    def sample(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """[count] whole tokens, longest first.

        Stratified: one draw from each of `count` equal parts, so that the mean hardly varies.
        """
        if self.sigma == 0.0:
            return np.full(count, max(1, round(self.mean)))
        table = _quantiles(self.mean, self.longest, self.sigma)
        places = (np.arange(count) + generator.random(count)) / count
        return np.sort(table[(places * NUM_QUANTILES).astype(int)])[::-1]


@cache
def _quantiles(mean: float, longest: int, sigma: float) -> np.ndarray:
    normal = NormalDist()
    places = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    spread = np.exp([sigma * normal.inv_cdf(place) for place in places])
    low, high = 0.0, math.log(longest) + 6 * sigma
    for _ in range(60):
        middle = (low + high) / 2
        if np.minimum(longest, math.exp(middle) * spread).mean() < mean:
            low = middle
        else:
            high = middle
    cut = np.minimum(longest, math.exp(low) * spread).round().astype(int)
    lengths: np.ndarray = np.maximum(1, cut)
    return lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One iteration: `num_rollouts` are sampled, scored and trained on."""

    model: Model
    num_rollouts: int
    prompt_tokens: float
    lengths: Lengths
    num_updates: int = 1
    """Optimizer steps that the rollouts are divided into."""
    scoring_passes: float = 2
    """Forward passes between rollout and update: old and reference log-probs."""
    trained_models: float = 1
    """Policy and critics, all of the same size."""
    recompute: bool = False
    """Whether the backward pass runs the forward pass again."""

    @property
    def tokens(self) -> float:
        return self.num_rollouts * (self.prompt_tokens + self.lengths.mean)

    @property
    def sequence_limit(self) -> float:
        return self.prompt_tokens + self.lengths.longest


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """GPUs and how models are cut over them.

    Colocated: the same GPUs sample and train in turn, so both counts are all GPUs.
    """

    rollout_gpus: int
    train_gpus: int
    colocated: bool
    rollout_tp: int = 1
    train_tp: int = 1
    train_pp: int = 1
    train_cp: int = 1
    train_ep: int = 1
    memory_fraction: float = 0.6
    """Of GPU memory that the rollout engine may fill with weights, keys and values."""
    max_sequences: int = 1024
    """That one engine decodes at once."""
    max_policy_lag: int = 0

    def __post_init__(self) -> None:
        if self.colocated and (self.max_policy_lag or self.rollout_gpus != self.train_gpus):
            raise ValueError("colocated GPUs take turns: max_policy_lag must be 0, counts equal")
        if self.rollout_gpus < self.rollout_tp:
            raise ValueError(f"rollout_gpus ({self.rollout_gpus}) must hold one engine")

    @property
    def num_engines(self) -> int:
        return self.rollout_gpus // self.rollout_tp

    @property
    def num_gpus(self) -> int:
        return self.train_gpus if self.colocated else self.rollout_gpus + self.train_gpus

    @property
    def data_parallel(self) -> float:
        return max(1.0, self.train_gpus / (self.train_tp * self.train_pp * self.train_cp))

    @property
    def shard_group(self) -> int:
        """GPUs that hold one copy of the trained weights."""
        return self.train_pp * max(self.train_tp, self.train_ep)
