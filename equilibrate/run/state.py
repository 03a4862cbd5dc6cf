"""What a checkpoint of a run holds, and how the parts get it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError
from equilibrate.interfaces import Learner, MetricSink
from equilibrate.run.checkpoint import CheckpointStore
from equilibrate.run.queue import RolloutQueue

CHANGEABLE = (
    "output",
    "iterations",
    "checkpoint_every",
    "keep_checkpoints",
    "evaluate_every",
    "timeout_seconds",
    "max_restarts",
    "wandb_project",
)
"""Settings that a resumed run may change: they steer how it runs, not what an iteration computes.
`iterations` is among them so that a run can be prolonged; a falling learning-rate schedule then
counts from the new end."""


def settings_fixed_on_resume(config: TrainConfig) -> dict[str, Any]:
    """All others, by dotted key. Lists and mixtures count as one value."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and not prefix.endswith("mixture"):
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else key, inner)
        elif prefix not in CHANGEABLE:
            flat[prefix] = value

    visit("", json.loads(config.model_dump_json()))
    return flat


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
    ) -> None:
        """`fixed`: settings that must be equal when a run is resumed, by key."""
        self._store = store
        self._learner = learner
        self._queue = queue
        self._sink = sink
        self._stateful = stateful
        self._fixed = dict(fixed)

    def save(self, iteration: int) -> None:
        def write(folder: Path) -> None:
            self._learner.save(folder / "learner")
            self._queue.save(folder)
            state = {
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
        self._check_fixed(state["fixed"], checkpoint.folder)
        self._learner.load(checkpoint.folder / "learner")
        self._queue.load(checkpoint.folder)
        for name, part in self._stateful.items():
            part.load_state_dict(state["parts"][name])
        self._sink.rewind(state["metric_offset"])
        return int(state["iteration"])

    def _check_fixed(self, saved: Mapping[str, Any], folder: Path) -> None:
        for key in sorted({*saved, *self._fixed}):
            if saved.get(key) != self._fixed.get(key):
                raise ConfigError(
                    f"{key} ({self._fixed.get(key)!r}) must stay what it was when the run in "
                    f"{folder} was started ({saved.get(key)!r}); set it back, or choose another "
                    "output folder"
                )
