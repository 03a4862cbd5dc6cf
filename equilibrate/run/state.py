"""What a checkpoint of a run holds, and how the parts get it back."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from equilibrate.config.formats import SETTINGS_FORMAT, require_resumable
from equilibrate.config.identity import require_fixed
from equilibrate.errors import DiskError
from equilibrate.interfaces import Learner, MetricSink
from equilibrate.run.checkpoint import CheckpointStore
from equilibrate.run.queue import RolloutQueue

logger = logging.getLogger(__name__)

MAX_REFUSED_SAVES = 3
"""Saves in a row that a disk may refuse before the run ends: it could not be resumed from anywhere
near."""


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class RunCheckpoints:
    """Saves and restores learner, waiting rollouts, sampler, controllers and the metric offset
    (`Checkpoints`)."""

    def __init__(
        self,
        store: CheckpointStore,
        *,
        learner: Learner,
        queue: RolloutQueue,
        sink: MetricSink,
        stateful: Mapping[str, Stateful],
        fixed: Mapping[str, Any],
        defaults: Mapping[str, Any],
    ) -> None:
        """
        Args:
            fixed: what must be equal when a run is resumed, by key: `fixed_on_resume` and the
                contents of the inputs.
            defaults: what counts for settings that an older checkpoint does not name.
        """
        self._store = store
        self._learner = learner
        self._queue = queue
        self._sink = sink
        self._stateful = stateful
        self._fixed = dict(fixed)
        self._defaults = defaults
        self._refused = 0

    def try_save(self, iteration: int) -> None:
        """`save` in the midst of a run, which goes on where the disk refuses.

        Raises: DiskError at the last of `MAX_REFUSED_SAVES` in a row; as `save` otherwise.
        """
        try:
            self.save(iteration)
        except DiskError as error:
            self._refused += 1
            if self._refused >= MAX_REFUSED_SAVES:
                raise
            logger.warning("%s; the run goes on, and its last checkpoint stays", error)
        else:
            self._refused = 0

    def save(self, iteration: int) -> None:
        def write(folder: Path) -> None:
            self._learner.save(folder / "learner")
            self._queue.save(folder)
            state = {
                "settings_format": SETTINGS_FORMAT,
                "iteration": iteration,
                "metric_offset": self._sink.offset(),
                "fixed": self._fixed,
                "parts": {name: part.state_dict() for name, part in self._stateful.items()},
            }
            (folder / "driver.json").write_text(json.dumps(state))

        self._store.save(iteration, write)

    def restore(self) -> int:
        checkpoint = self._store.latest()
        if checkpoint is None:
            self._sink.rewind(0)
            self.save(0)
            return 0
        state = json.loads((checkpoint.folder / "driver.json").read_text())
        require_resumable(state, checkpoint.folder)
        require_fixed(state["fixed"], self._fixed, checkpoint.folder, self._defaults)
        self._learner.load(checkpoint.folder / "learner")
        self._queue.load(checkpoint.folder)
        for name, part in self._stateful.items():
            part.load_state_dict(state["parts"].get(name, {}))
        self._sink.rewind(state["metric_offset"])
        return int(state["iteration"])
