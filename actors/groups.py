"""The worker groups of a run: reserved together, started, and released together.

Runs that follow one another may use the same ones, all but the learner.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.learner import LearnerSettings, LearnerWorker
from actors.placement import Reservation
from actors.pools import RayLearnerGroup, RayRolloutPool, RayScorer, WorkerPool
from actors.prepare import Models
from actors.rollout import RolloutWorker, engine_environment
from actors.weights import pack_model
from equilibrate.config.base import SAMPLED_BY, SCORED_BY, RunConfig, WorkerGroup
from equilibrate.config.identity import only
from equilibrate.config.train import TrainConfig
from equilibrate.learning.scoring import ENVIRONMENT, ScoringWorker
from equilibrate.run.capacity import Demand
from equilibrate.seeds import request_seed
from equilibrate.types import Weights

Role = Literal["rollout", "scoring", "learner"]
ALL_ROLES: tuple[Role, ...] = ("rollout", "scoring", "learner")


class WorkerGroups:
    """Rollout pool, scorer and learner, as far as asked for; leaving the context ends every
    process."""

    rollouts: RayRolloutPool
    scorer: RayScorer
    learner: RayLearnerGroup

    def __init__(
        self, config: RunConfig, inputs: Models, *, roles: Sequence[Role] = ALL_ROLES
    ) -> None:
        """Entering raises ResourceError if the cluster cannot hold the groups in time.

        Args: config: a `TrainConfig` where there is to be a learner.
        """
        self._config = config
        self._inputs = inputs
        self._groups: dict[Role, WorkerGroup] = {role: getattr(config, role) for role in roles}
        self._pools: list[WorkerPool] = []

    def __enter__(self) -> Self:
        demands = [
            Demand(name=name, num_workers=g.num_workers, cpus=g.cpus, gpus=g.gpus)
            for name, g in self._groups.items()
        ]
        self._reservation = Reservation(demands, self._config.timeout_seconds)
        if "rollout" in self._groups:
            self.rollouts = RayRolloutPool(
                self._pool("rollout", self._start_rollout_worker),
                partial(request_seed, self._config.seed),
            )
        if "scoring" in self._groups:
            self.scorer = RayScorer(self._pool("scoring", self._start_scoring_worker))
        if "learner" in self._groups:
            self.learner = RayLearnerGroup(
                self._start_learner_ranks, timeout_seconds=self._config.timeout_seconds
            )
        return self

    def renew(self, config: TrainConfig) -> None:
        """For the next run: a fresh learner in the place of the last one's, and its restarts."""
        self._config = config
        for pool in self._pools:
            pool.restarts_left = config.max_restarts
        self.learner.restart()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Removing the placement group ends the actors in it.
        self._reservation.release()

    def weights_of_folder(self, folder: Path, version: int) -> Weights:
        """The weights of a model folder, ready for `rollouts.sync`."""
        from equilibrate.models.device import Accelerator
        from equilibrate.models.loading import load_policy

        model = load_policy(folder, Accelerator("cpu", "float32")).model
        return Weights(version=version, reference=ray.put(pack_model(model)))

    def _pool(self, name: Role, start: Any) -> WorkerPool:
        pool = WorkerPool(
            name,
            start,
            num_workers=self._groups[name].num_workers,
            timeout_seconds=self._config.timeout_seconds,
            max_restarts=self._config.max_restarts,
        )
        self._pools.append(pool)
        return pool

    def _start(self, name: Role, index: int, worker: type, environment: dict[str, str]) -> Any:
        group = self._groups[name]
        base = {
            "OMP_NUM_THREADS": str(self._config.cpu_threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return ray.remote(worker).options(
            num_cpus=group.cpus,
            num_gpus=group.gpus,
            runtime_env={"env_vars": {**base, **environment}},
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._reservation.group, self._reservation.bundle_index(name, index)
            ),
        )

    def _start_rollout_worker(self, index: int) -> ActorHandle:
        config = only(self._config, *SAMPLED_BY)
        environment = engine_environment(device=config.device, threads=config.cpu_threads)
        handle: ActorHandle = self._start("rollout", index, RolloutWorker, environment).remote(
            model_folder=str(self._inputs.policy),
            dtype=config.dtype,
            temperature=config.rollout.temperature,
            max_new_tokens=config.rollout.max_new_tokens,
            max_model_len=config.rollout.max_model_len,
            kv_cache_gib=config.rollout.memory_gib if config.device == "cpu" else None,
            enforce_eager=config.device == "cpu",
        )
        return handle

    def _start_scoring_worker(self, index: int) -> ActorHandle:
        config = only(self._config, *SCORED_BY, "rollout.temperature")
        inputs = self._inputs
        handle: ActorHandle = self._start("scoring", index, ScoringWorker, ENVIRONMENT).remote(
            reward=str(inputs.reward or ""),
            cost=str(inputs.cost or ""),
            reference=str(inputs.policy),
            device=config.device,
            dtype=config.dtype,
            cpu_threads=config.cpu_threads,
            max_tokens_per_batch=config.scoring.max_tokens_per_batch,
            temperature=config.rollout.temperature,
        )
        return handle

    def _start_learner_ranks(self) -> list[ActorHandle]:
        config, inputs = cast(TrainConfig, self._config), self._inputs
        settings = LearnerSettings(
            policy=str(inputs.policy),
            reward=str(inputs.reward) if config.ppo.has_critics else "",
            cost=str(inputs.cost) if _needs_cost_critic(config) else "",
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
            learner=config.learner,
            ppo=config.ppo,
            ama=config.ama,
        )
        address, port = self._rendezvous()
        num_ranks = config.learner.num_workers
        return [
            self._start(
                "learner",
                rank,
                LearnerWorker,
                {
                    "RANK": str(rank),
                    # Ray shows each worker its own GPU alone.
                    "LOCAL_RANK": "0",
                    "WORLD_SIZE": str(num_ranks),
                    "MASTER_ADDR": address,
                    "MASTER_PORT": str(port),
                },
            ).remote(settings)
            for rank in range(num_ranks)
        ]

    def _rendezvous(self) -> tuple[str, int]:
        """Address of rank 0's machine and a port that is free there."""
        strategy = PlacementGroupSchedulingStrategy(
            self._reservation.group, self._reservation.bundle_index("learner", 0)
        )
        find = ray.remote(_free_address).options(num_cpus=0, scheduling_strategy=strategy)
        answer: tuple[str, int] = ray.get(find.remote(), timeout=self._config.timeout_seconds)
        return answer


def _needs_cost_critic(config: TrainConfig) -> bool:
    is_read = config.ama is not None and config.ama.source == "critics"
    return config.ppo.has_critics and (config.constraint is not None or is_read)


def _free_address() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]
