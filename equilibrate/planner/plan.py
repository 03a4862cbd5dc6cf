"""Which process of a run needs how much memory, whether it is there, and what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from equilibrate.config.base import RunConfig, WorkerGroup
from equilibrate.config.fit import FitConfig, ScorerObjectiveConfig
from equilibrate.config.sources import reads_text
from equilibrate.config.train import TrainConfig
from equilibrate.config.training import AdapterConfig, TrainingGroup
from equilibrate.errors import ConfigError
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import Role
from equilibrate.planner.memory import Memory, generator, read, trained
from equilibrate.planner.tracing import Traced, trace
from equilibrate.types import ScorerKind

GIB = 2**30
SCORERS: tuple[ScorerKind, ...] = ("reward", "cost")
CUDA_RESERVE = 2 * GIB
"""Of each GPU: context, kernels, NCCL and what the allocator cannot hand out; an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The processes of one group."""

    name: str
    processes: int
    memory: Memory
    """Of each."""
    gpus: float
    """Of each; 0 on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, or the whole machine where there are none."""

    name: str
    memory: int
    """Bytes that processes may take."""
    is_gpu: bool


def plan(config: TrainConfig | FitConfig) -> list[Part]:
    """Every group of processes of a run of somebody's own model.

    Raises: ConfigError for the built-in world, whose models are small; DataError as `trace`.
    """
    if config.data.is_built_in:
        raise ConfigError("data.policy ('') must name a model folder to plan for; a config.json do")
    if isinstance(config, FitConfig):
        parts = [Part(**_group("trainer", config.trainer), memory=_trainer(config))]
        return [*parts, *([_rollout(config)] if config.data.evaluation else [])]
    return [
        Part(**_group("learner", config.learner), memory=_learner(config)),
        Part(**_group("scoring", config.scoring), memory=_scoring(config)),
        _rollout(config),
    ]


def _group(name: str, group: WorkerGroup) -> dict[str, Any]:
    return {"name": name, "processes": group.num_workers, "gpus": group.gpus}


def _trainer(config: FitConfig) -> Memory:
    role: Role = "policy"
    if isinstance(config.objective, ScorerObjectiveConfig):
        role = config.objective.kinds[0]
    model = _traced(config, config.data.policy, role, config.trainer, config.max_length)
    return _trained([model], config.trainer)


def _learner(config: TrainConfig) -> Memory:
    critics: list[ScorerKind] = []
    if config.ppo.has_critics:
        critics = ["reward", "cost"] if config.has_cost_critic else ["reward"]
    length = config.rollout.max_model_len
    models = [_traced(config, config.data.policy, "policy", config.learner, length)]
    for kind in critics:
        folder = _folder(config, kind) or config.data.policy
        models.append(_traced(config, folder, kind, config.learner, length))
    return _trained(models, config.learner)


def _trained(models: Sequence[Traced], group: TrainingGroup) -> Memory:
    return trained(models, zero_stage=group.zero_stage, num_ranks=group.num_workers)


def _scoring(config: TrainConfig) -> Memory:
    length = config.rollout.max_model_len
    folders = {_folder(config, kind): kind for kind in SCORERS}  # two heads of one model: once
    roles: list[tuple[str, Role]] = [
        (config.data.policy, "policy"),
        *((f, kind) for f, kind in folders.items() if f),
    ]
    budget = config.scoring.max_tokens_per_batch
    return read([_traced(config, *role, None, length, budget=budget) for role in roles])


def _folder(config: TrainConfig, kind: ScorerKind) -> str:
    """Empty where a scorer is no folder, or is none."""
    source: str = getattr(config.data, kind)
    return "" if reads_text(source) else source


def _rollout(config: TrainConfig | FitConfig) -> Part:
    memory = generator(
        config.data.policy,
        dtype=config.dtype,
        cache=int(config.rollout.memory_gib * GIB) if config.device == "cpu" else None,
        tokens=config.rollout.max_model_len,
    )
    return Part(**_group("rollout", config.rollout), memory=memory)


def _traced(
    config: RunConfig,
    folder: str,
    role: Role,
    group: TrainingGroup | None,
    length: int,
    *,
    budget: int = 0,
) -> Traced:
    """A pass of the longest rows, as many as the budget of tokens takes."""
    budget = budget or (group.max_tokens_per_batch if group else length)
    accelerator = Accelerator(config.device, config.dtype)
    rows = max(1, budget // length)
    if group is not None:  # what a pass depends on
        group = TrainingGroup(
            adapter=group.adapter, activation_checkpointing=group.activation_checkpointing
        )
    # Both kinds of scorer are one kind of model.
    kind: Role = "policy" if role == "policy" else "reward"
    return _trace_once(Path(folder), kind, accelerator, rows, length, group)


@lru_cache(maxsize=64)
def _trace_once(
    folder: Path,
    role: Role,
    accelerator: Accelerator,
    rows: int,
    length: int,
    group: TrainingGroup | None,
) -> Traced:
    """Several models of a run are alike, and what would help is asked of many settings."""
    return trace(folder, role, accelerator, rows=rows, length=length, group=group)


def too_large(parts: Sequence[Part], device: Device) -> list[Part]:
    """Parts that do not fit: each beside those that share its GPU; on a CPU all beside another."""
    if not device.is_gpu:
        needed = sum(part.processes * part.memory.total for part in parts)
        return list(parts) if needed > device.memory else []
    room = device.memory - CUDA_RESERVE
    return [part for part in parts if part.memory.total > room * min(1.0, part.gpus or 1.0)]


def remedies(config: TrainConfig | FitConfig) -> Iterator[tuple[list[str], Any]]:
    """Settings that need less memory, those that cost least first, each with what came before."""
    key = "trainer" if isinstance(config, FitConfig) else "learner"
    group: TrainingGroup = getattr(config, key)
    said: list[str] = []

    def changed(**update: Any) -> tuple[list[str], Any]:
        nonlocal group
        group = group.model_copy(update=update)
        for name, value in update.items():
            shown = f"{name}.rank={value.rank}" if isinstance(value, AdapterConfig) else name
            said.append(f"{key}.{shown}" if shown != name else f"{key}.{name}={_yaml(value)}")
        return list(said), config.model_copy(update={key: group})

    if not group.activation_checkpointing:
        yield changed(activation_checkpointing=True)
    for stage in range(group.zero_stage + 1, 4) if group.num_workers > 1 else ():
        said[:] = [one for one in said if "zero_stage" not in one]
        yield changed(zero_stage=stage)
    longest = config.max_length if isinstance(config, FitConfig) else config.rollout.max_model_len
    if group.max_tokens_per_batch > longest:
        yield changed(max_tokens_per_batch=longest)
    if group.adapter is None:
        yield changed(adapter=AdapterConfig())


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
