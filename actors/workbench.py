"""Generator and scorers that several runs from one starting policy share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from actors.groups import ALL_ROLES, Role, WorkerGroups
from actors.prepare import Models
from equilibrate.config.base import SAMPLED_BY, SCORED_BY, RunConfig, WorkerGroup
from equilibrate.config.identity import only
from equilibrate.config.train import TrainConfig
from equilibrate.interfaces import RolloutPool, Scorer

STARTED_WITH = (*SAMPLED_BY, *SCORED_BY, "timeout_seconds", "phase_seconds", "max_restarts")
"""Settings that the generator and the scorers of a workbench are started with."""
LEARNER_ROOM = tuple(f"learner.{name}" for name in WorkerGroup.model_fields)
"""Settings of the room that is reserved for a learner."""


class Workbench:
    """Generator and scorers of one starting policy, started when they are asked for.

    Several runs from that policy, one after another, may share one, and so its generator: that
    takes longer to start than a small policy to train.
    """

    def __init__(self, config: RunConfig, inputs: Models) -> None:
        self._config = config
        self._inputs = inputs
        self._open = ExitStack()
        self._groups: WorkerGroups | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()
        self._groups = None

    def suits(self, config: RunConfig, inputs: Models) -> bool:
        """Whether its processes are those that this run would start."""
        mine = self._config
        if not (
            type(config) is type(mine)
            and only(config, *STARTED_WITH) == only(mine, *STARTED_WITH)
            and _agree(inputs, self._inputs, ("policy",))
        ):
            return False
        if isinstance(config, TrainConfig) and isinstance(mine, TrainConfig):
            # Scorers are kept too, and the learner takes the room that the last one had.
            return _agree(inputs, self._inputs, ("reward", "cost", "more_rewards", "ptx")) and (
                only(config, *LEARNER_ROOM) == only(mine, *LEARNER_ROOM)
            )
        return True

    def groups_for(self, config: TrainConfig) -> WorkerGroups:
        """All that a run of PPO needs: generator and scorers as they are, a learner of its own.

        They are reserved together and once: a run that held a generator and waited for room for its
        learner could wait for another that does the same.
        """
        self.turn_to(config)
        return self._started(ALL_ROLES)

    def turn_to(self, config: RunConfig) -> None:
        """Serve another run, which it suits, from now on."""
        self._config = config
        if self._groups is not None:
            self._groups.renew(config)

    @contextmanager
    def scorer_of(self, inputs: Models) -> Iterator[Scorer]:
        """The reward and cost models of `inputs`, as far as it has them, and the policy."""
        # Losses are those of the policy itself, at whatever temperature it is sampled.
        sampling = self._config.rollout.model_copy(update={"temperature": 1.0})
        config = self._config.model_copy(update={"rollout": sampling})
        # Not kept: what waits here would take the room that the training asks for next.
        with WorkerGroups(config, inputs, roles=("scoring",)) as groups:
            yield groups.scorer

    @property
    def generator(self) -> RolloutPool:
        """With the weights that `load` gave it last."""
        return self._started(("rollout",)).rollouts

    def load(self, folder: Path, version: int) -> None:
        """Give the generator the weights of a model folder."""
        groups = self._started(("rollout",))
        groups.rollouts.sync(groups.weights_of_folder(folder, version))

    def make_room(self) -> None:
        """Before a training: on GPUs the generator would keep the memory that it needs."""
        if self._config.device == "cuda":
            self.close()

    def _started(self, roles: Sequence[Role]) -> WorkerGroups:
        if self._groups is None:
            groups = WorkerGroups(self._config, self._inputs, roles=roles)
            self._groups = self._open.enter_context(groups)
        return self._groups


def _agree(one: object, other: object, names: Iterable[str]) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in names)
