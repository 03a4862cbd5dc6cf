"""Seconds of an iteration on GPUs: the rooflines of `costs` and the schedule of `events`."""

from __future__ import annotations

from typing import Any

from equilibrate.config.base import GPU_UTILIZATION
from equilibrate.config.train import TrainConfig
from equilibrate.config.training import TrainingGroup
from equilibrate.models.skeleton import build_empty
from equilibrate.planner.costs import Costs
from equilibrate.planner.events import Simulated, simulate
from equilibrate.planner.hardware import Efficiency, Gpu
from equilibrate.planner.memory import kv_bytes_per_token, kv_shape
from equilibrate.planner.workload import Lengths, Model, Placement, Workload

FITTED = Efficiency(
    matmul=0.59,
    memory=0.45,
    exchange=0.33,
    sync=0.085,
    layer_seconds=4.1e-5,
    network_seconds=8.3e-5,
    fixed_seconds=21.0,
)
"""Shares of the data sheet that published runs on H100 reached: docs/performance.md, made by
`python -m benchmarks.simulate`. `fixed_seconds` is of jobs over many machines."""


def iteration_seconds(config: TrainConfig, gpu: Gpu) -> Simulated:
    """Of an iteration whose answers are half as long as they may be, prompts too.

    Nothing of ours ran on a GPU: the share of the data sheet that is reached is that of others.
    """
    models = 1 + len(config.critic_models)
    groups = (config.rollout, config.learner, config.scoring)
    sampling, training, scoring = (max(1, round(one.num_workers * one.gpus)) for one in groups)
    is_shared = config.rollout.gpus < 1
    rollout = config.rollout
    longest_prompt = rollout.max_model_len - rollout.max_new_tokens
    work = Workload(
        model=_model(config.data.policy),
        num_rollouts=config.rollouts_per_iteration,
        prompt_tokens=longest_prompt / 2,
        lengths=Lengths(mean=rollout.max_new_tokens / 2, longest=rollout.max_new_tokens),
        num_updates=config.ppo.epochs
        * (config.rollouts_per_iteration // config.ppo.minibatch_size),
        # The old log-probs and values by the learner; reference, reward and cost on their own GPUs.
        scoring_passes=models + 3 * training / scoring,
        trained_models=models * _share_of_a_training(config.learner),
        recompute=config.learner.activation_checkpointing,
    )
    placement = Placement(
        rollout_gpus=training if is_shared else sampling,
        train_gpus=training,
        colocated=is_shared,
        memory_fraction=GPU_UTILIZATION * min(1.0, rollout.gpus or 1.0),
        max_policy_lag=0 if is_shared else rollout.max_policy_lag,
    )
    return simulate(Costs(gpu, FITTED, work, placement), seed=config.seed)


def _share_of_a_training(group: TrainingGroup) -> float:
    """Of the three or four products with all weights, an adapter leaves out that of gradients."""
    products = 4 if group.activation_checkpointing else 3
    return (products - 1) / products if group.adapter else 1.0


def _model(folder: str) -> Model:
    model: Any = build_empty(folder, "policy")
    config = model.config.get_text_config()
    numbers = float(sum(parameter.numel() for parameter in model.parameters()))
    kv_heads, head_size = kv_shape(config)
    return Model(
        name=folder,
        num_parameters=numbers,
        num_active=numbers,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        attention_width=float(config.num_attention_heads * head_size),
        kv_heads=kv_heads,
        kv_bytes_per_token=kv_bytes_per_token(config, 2),
    )
