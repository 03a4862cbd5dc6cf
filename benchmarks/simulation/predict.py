"""Steps of a job on 8 to 1,024 GPUs, and the split between rollout and training that is fastest."""

from __future__ import annotations

from dataclasses import dataclass

from equilibrate.planner.costs import Costs
from equilibrate.planner.events import Simulated, simulate
from equilibrate.planner.hardware import Efficiency, Gpu
from equilibrate.planner.workload import LENGTH_SIGMA, Lengths, Model, Placement, Workload

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
SHARES = tuple(eighth / 8 for eighth in range(1, 8))
STATE_BYTES = 16
"""Of each trained parameter: weight and gradient in bfloat16, master copy, two moments."""
MEMORY_SHARE = 0.7
"""Of GPU memory for weights and optimizer state; the rest holds activations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """PPO-Lagrangian: policy and two critics are trained; reference, reward and cost only read."""

    model: Model
    rollouts: int
    prompt_tokens: float = 256.0
    response_mean: float = 1024.0
    longest: int = 4096
    sigma: float = LENGTH_SIGMA
    trained_models: int = 3
    frozen_models: int = 3

    def workload(self) -> Workload:
        return Workload(
            model=self.model,
            num_rollouts=self.rollouts,
            prompt_tokens=self.prompt_tokens,
            lengths=Lengths(mean=self.response_mean, longest=self.longest, sigma=self.sigma),
            num_updates=4,
            scoring_passes=self.trained_models + self.frozen_models,
            trained_models=self.trained_models,
            recompute=True,
        )

    def fits(self, gpu: Gpu, train_gpus: int) -> bool:
        """Whether weights and optimizer states, divided over the training GPUs, find room."""
        num_bytes = STATE_BYTES * self.trained_models + 2 * self.frozen_models
        room = MEMORY_SHARE * gpu.memory_bytes * train_gpus
        return num_bytes * self.model.num_parameters <= room


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Seconds of a step; None where nothing fits."""

    num_gpus: int
    rollouts: int
    colocated: Simulated | None
    """Lag 0, all GPUs sample and train in turn."""
    split: Simulated | None
    """Lag 1, the best of the splits."""
    rollout_gpus: int | None


def predict(job: Job, gpu: Gpu, efficiency: Efficiency, *, seed: int = 0) -> list[Prediction]:
    return [_predict(job, gpu, efficiency, size, seed) for size in SIZES]


def _predict(job: Job, gpu: Gpu, efficiency: Efficiency, size: int, seed: int) -> Prediction:
    work = job.workload()

    def run(place: Placement) -> Simulated:
        return simulate(Costs(gpu, efficiency, work, place), seed=seed)

    together = Placement(rollout_gpus=size, train_gpus=size, colocated=True)
    colocated = run(together) if job.fits(gpu, size) else None
    splits = {
        count: run(
            Placement(
                rollout_gpus=count,
                train_gpus=size - count,
                colocated=False,
                memory_fraction=0.8,
                max_policy_lag=1,
            )
        )
        for count in (round(size * share) for share in SHARES)
        if job.fits(gpu, size - count)
    }
    best = min(splits, key=lambda count: splits[count].step, default=None)
    return Prediction(
        num_gpus=size,
        rollouts=work.num_rollouts,
        colocated=colocated,
        split=None if best is None else splits[best],
        rollout_gpus=best,
    )
