"""What each kind of worker is made with, from the settings of a run."""

from __future__ import annotations

from functools import partial

from actors.learner import LearnerSettings, LearnerWorker
from actors.prepare import Models
from actors.rollout import RolloutWorker, engine_environment
from equilibrate.config.base import SAMPLED_BY, SCORED_BY, RunConfig
from equilibrate.config.identity import only
from equilibrate.config.train import TrainConfig
from equilibrate.run.judging import JudgingScorer


def rollout_worker(run: RunConfig, inputs: Models) -> partial[RolloutWorker]:
    config = only(run, *SAMPLED_BY)
    return partial(
        RolloutWorker,
        model_folder=str(inputs.policy),
        dtype=config.dtype,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        max_model_len=config.rollout.max_model_len,
        kv_cache_gib=config.rollout.memory_gib if config.device == "cpu" else None,
        enforce_eager=config.device == "cpu",
        gpu_share=run.rollout.gpus or 1.0,
    )


def rollout_environment(run: RunConfig) -> dict[str, str]:
    config = only(run, *SAMPLED_BY)
    return engine_environment(device=config.device, threads=config.cpu_threads)


def scoring_worker(run: RunConfig, inputs: Models) -> partial[JudgingScorer]:
    config = only(run, *SCORED_BY, "rollout.temperature", "text")
    return partial(
        JudgingScorer,
        reward=str(inputs.reward or ""),
        cost=str(inputs.cost or ""),
        more_rewards=inputs.more_rewards,
        reference=str(inputs.policy),
        device=config.device,
        dtype=config.dtype,
        cpu_threads=config.cpu_threads,
        max_tokens_per_batch=config.scoring.max_tokens_per_batch,
        temperature=config.rollout.temperature,
        deadline_seconds=run.deadline("score"),
        text=config.text,
    )


def learner_worker(config: TrainConfig, inputs: Models, divisor: int) -> partial[LearnerWorker]:
    """Args: divisor: each pass takes the tokens of the settings over it."""
    tokens = max(1, config.learner.max_tokens_per_batch // divisor)
    settings = LearnerSettings(
        policy=str(inputs.policy),
        reward=str(inputs.reward) if "reward" in config.critics else "",
        cost=str(inputs.cost) if "cost" in config.critics else "",
        ptx=str(inputs.ptx or ""),
        device=config.device,
        dtype=config.dtype,
        cpu_threads=config.cpu_threads,
        seed=config.seed,
        iterations=config.iterations,
        temperature=config.rollout.temperature,
        text=config.text,
        max_length=config.rollout.max_model_len,
        parity_tolerance=config.parity_tolerance,
        learner=config.learner.model_copy(update={"max_tokens_per_batch": tokens}),
        ppo=config.ppo,
        ama=config.ama,
    )
    return partial(LearnerWorker, settings)
