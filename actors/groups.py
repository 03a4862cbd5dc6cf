"""The worker groups of a run: reserved together, started, and released together.

Runs that follow one another may use the same ones, all but the learner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.handles import Worker, wait_for_start, who_sits_where
from actors.learner import LearnerWorker
from actors.makers import learner_worker, rollout_environment, rollout_worker, scoring_worker
from actors.meeting import open_meeting
from actors.placement import Reservation
from actors.pools import (
    MakeWorker,
    RayLearnerGroup,
    RayRolloutPool,
    RayScorer,
    Watch,
    WorkerPool,
)
from actors.prepare import Models
from actors.rollout import RolloutWorker
from actors.weights import pack_model
from equilibrate.config.base import RunConfig, WorkerGroup
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ResourceError, WorkerLostError
from equilibrate.learning.scoring import ENVIRONMENT
from equilibrate.run.agreement import Agreement
from equilibrate.run.capacity import Demand
from equilibrate.run.folder import say
from equilibrate.run.judging import JudgingScorer
from equilibrate.seeds import request_seed
from equilibrate.types import Weights

W = TypeVar("W")
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
        self._pools: list[WorkerPool[Any]] = []
        self._agreement: Agreement | None = None

    def __enter__(self) -> Self:
        demands = [Demand.of(name, group) for name, group in self._groups.items()]
        self._reservation = Reservation(demands, self._config.deadline("start"))
        try:
            self._agree()
            self._start_all()
        except BaseException:
            self._end()
            raise
        return self

    def _end(self) -> None:
        # Removing the placement group ends the actors in it.
        self._reservation.release()
        if self._agreement is not None:
            self._agreement.forget()

    def _agree(self) -> None:
        """Upon the folder of the run at hand, for all workers that start from now on."""
        if self._agreement is not None:
            self._agreement.forget()
        self._agreement = Agreement.write(self._folder)

    def _start_all(self) -> None:
        """Raises: at once, the error of a worker that cannot start."""
        workers: list[Worker[Any]] = []
        ranks: Sequence[Worker[Any]] = ()
        if "rollout" in self._groups:
            rollouts = self._pool("rollout", self._start_rollout_worker)
            self.rollouts = RayRolloutPool(rollouts, partial(request_seed, self._config.seed))
            workers += rollouts.workers
        if "scoring" in self._groups:
            scorers = self._pool("scoring", self._start_scoring_worker)
            self.scorer = RayScorer(scorers)
            workers += scorers.workers
        if "learner" in self._groups:
            self.learner = RayLearnerGroup(
                self._start_learner_ranks,
                watch=self._watch,
                max_restarts=self._config.max_restarts,
            )
            ranks = self.learner.ranks
        late = wait_for_start(workers, ranks, seconds=self._config.deadline("start"))
        if late:
            raise ResourceError(
                f"{self._watch.overdue('start', late, [*workers, *ranks])}; raise timeout_seconds "
                "where the machine is slow or busy"
            )
        if seats := who_sits_where([*workers, *ranks]):
            say(seats)

    @property
    def _watch(self) -> Watch:
        return Watch(seconds=self._config.deadline, folder=self._folder)

    @property
    def _folder(self) -> Path:
        return Path(self._config.output).resolve()

    def renew(self, config: RunConfig) -> None:
        """For the next run: its folder and restarts, and a fresh learner where there is one."""
        self._config = config
        self._agree()
        for pool in self._pools:
            pool.renew(self._watch, config.max_restarts)
        if "learner" in self._groups:
            self.learner.renew(self._watch, config.max_restarts)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def weights_of_folder(self, folder: Path, version: int) -> Weights:
        """The weights of a model folder, ready for `rollouts.sync`."""
        from equilibrate.models.device import Accelerator
        from equilibrate.models.loading import load_policy

        model = load_policy(folder, Accelerator("cpu", "float32")).model
        return Weights(version=version, reference=ray.put(pack_model(model)))

    def _pool(self, name: Role, make_worker: MakeWorker[W]) -> WorkerPool[W]:
        pool = WorkerPool(
            make_worker,
            num_workers=self._groups[name].num_workers,
            watch=self._watch,
            max_restarts=self._config.max_restarts,
        )
        self._pools.append(pool)
        return pool

    def _worker(
        self,
        role: Role,
        index: int,
        make: partial[W],
        environment: Mapping[str, str],
        *,
        bundle: int | None = None,
        starts: bool = True,
    ) -> Worker[W]:
        """Args: bundle: its place in the reservation, where it is not the one of its index."""
        group = self._groups[role]
        if bundle is None:
            bundle = self._reservation.bundles(role)[index]
        base = {
            "OMP_NUM_THREADS": str(self._config.cpu_threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        options = {
            "num_cpus": group.cpus,
            "num_gpus": group.gpus,
            "resources": dict(group.resources),
            "runtime_env": {"env_vars": {**base, **environment}},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._reservation.group, bundle
            ),
        }
        name = f"{role} worker {index}"
        return Worker(
            name,
            make,
            options=options,
            environment={} if starts else None,
            agreement=self._agreement,
        )

    def _start_rollout_worker(self, index: int) -> Worker[RolloutWorker]:
        make = rollout_worker(self._config, self._inputs)
        return self._worker("rollout", index, make, rollout_environment(self._config))

    def _start_scoring_worker(self, index: int) -> Worker[JudgingScorer]:
        make = scoring_worker(self._config, self._inputs)
        return self._worker("scoring", index, make, ENVIRONMENT)

    def _start_learner_ranks(self, divisor: int) -> list[Worker[LearnerWorker]]:
        make = learner_worker(cast(TrainConfig, self._config), self._inputs, divisor)
        ranks = [
            self._worker("learner", rank, make, {}, bundle=bundle, starts=False)
            for rank, bundle in enumerate(self._reservation.bundles_by_node("learner"))
        ]
        # Opened where it stays open: a port that is only looked up may be another's when it is
        # needed.
        try:
            meeting = ranks[0].run(open_meeting).result(seconds=self._config.deadline("start"))
        except WorkerLostError:
            for rank in ranks:
                rank.kill()  # the next ones need their places
            raise
        for number, rank in enumerate(ranks):
            rank.start(meeting.environment(rank=number, world_size=len(ranks)))
        return ranks
