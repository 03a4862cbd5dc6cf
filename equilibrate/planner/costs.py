"""Seconds of each part of an iteration, by the roofline: work / (peak x fraction reached)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from equilibrate.planner.hardware import Efficiency, Gpu
from equilibrate.planner.workload import Model, Placement, Workload


@dataclass(frozen=True)
class Costs:
    """The rates of one system, ready for the events."""

    gpu: Gpu
    efficiency: Efficiency
    workload: Workload
    placement: Placement

    @cached_property
    def model(self) -> Model:
        return self.workload.model

    @cached_property
    def matmul_rate(self) -> float:
        return self.gpu.flops_per_second * self.efficiency.matmul

    @cached_property
    def memory_rate(self) -> float:
        return self.gpu.memory_bytes_per_second * self.efficiency.memory

    def prefill_seconds(self, num_tokens: float) -> float:
        """2 N P / F on one engine."""
        flops = 2.0 * self.model.num_active * num_tokens
        return flops / (self.placement.rollout_tp * self.matmul_rate)

    def decode_seconds(self, num_sequences: int, cached_tokens: float) -> float:
        """One step of one engine: max(bytes / W, 2 N B / F) + c.

        Weights are cut over all GPUs of the engine, keys and values over at most one per head.
        """
        tp = self.placement.rollout_tp
        cache = self.model.kv_bytes_per_token * cached_tokens / min(tp, self.model.kv_heads)
        num_bytes = self.model.touched_bytes(num_sequences) / tp + cache
        flops = 2.0 * self.model.num_active * num_sequences / tp
        return max(num_bytes / self.memory_rate, flops / self.matmul_rate) + self.step_seconds

    @cached_property
    def step_seconds(self) -> float:
        """c, whatever the batch: launches of all layers, and their collectives over the network."""
        crosses = self.placement.rollout_tp > self.gpu.nvlink_domain
        per_layer = self.efficiency.layer_seconds + crosses * self.efficiency.network_seconds
        return self.model.num_layers * per_layer

    @cached_property
    def cache_limit(self) -> float:
        """Tokens whose keys and values fit into one engine beside the weights."""
        tp = self.placement.rollout_tp
        free = self.gpu.memory_bytes * self.placement.memory_fraction - self.model.weight_bytes / tp
        return free * min(tp, self.model.kv_heads) / self.model.kv_bytes_per_token

    def pass_seconds(self, weight: float) -> float:
        """`weight` forward passes over all tokens of the iteration, without pipeline bubbles.

        2 N D, causal attention 2 L w sum(s^2) of width w, and what moves between GPUs meanwhile.
        """
        model, work, place = self.workload.model, self.workload, self.placement
        length = work.tokens / work.num_rollouts
        attention = 2.0 * model.num_layers * model.attention_width * length
        flops = (2.0 * model.num_active + attention) * work.tokens
        seconds = flops / (place.train_gpus * self.matmul_rate)
        return weight * (seconds + self._exchange_seconds())

    def _exchange_seconds(self) -> float:
        """Activations that one forward pass moves between GPUs, over the bandwidth of their link.

        Tensor parallel: two all-reduces a layer, 2 (t - 1) / t of 2 h bytes each, and the whole
        group works on the same tokens. Experts: each token goes to k of them and comes back.
        """
        model, place = self.model, self.placement
        tokens = self.workload.tokens / place.train_gpus
        tp, ep = place.train_tp, place.train_ep
        tensor = 8.0 * model.num_layers * model.hidden_size * (tp - 1) * tokens
        experts = 4.0 * model.moe_layers * model.experts_per_token * model.hidden_size
        experts *= (1.0 - 1.0 / ep) * tokens
        seconds = tensor / self.gpu.link(tp) + experts / self.gpu.link(ep)
        return seconds / self.efficiency.exchange

    def _with_bubbles(self, seconds: float, num_updates: int) -> float:
        """Micro-batches are filled up to the longest sequence; p stages idle p - 1 of them."""
        work, place = self.workload, self.placement
        per_rank = work.tokens / num_updates / place.data_parallel
        micro_batches = max(1.0, per_rank / work.sequence_limit)
        return seconds * (1.0 + (place.train_pp - 1) / micro_batches)

    def scoring_seconds(self) -> float:
        return self._with_bubbles(self.pass_seconds(self.workload.scoring_passes), 1)

    def update_seconds(self) -> float:
        """Forward and backward are three forward passes, four with recomputation."""
        passes = self.workload.trained_models * (4.0 if self.workload.recompute else 3.0)
        return self._with_bubbles(self.pass_seconds(passes), self.workload.num_updates)

    def sync_seconds(self) -> float:
        """Every engine receives all weights: S / link, NVLink where both sides share a domain."""
        place = self.placement
        group = max(place.shard_group, place.rollout_tp) if place.colocated else place.num_gpus
        link = self.gpu.broadcast_link(group)
        return self.model.weight_bytes / (link * self.efficiency.sync)
