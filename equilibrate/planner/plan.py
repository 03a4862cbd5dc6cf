"""Which process of a run needs how much memory, whether it is there, and what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from equilibrate.config.base import GPU_UTILIZATION, RunConfig, WorkerGroup
from equilibrate.config.fit import ArsConfig, FitConfig, ScorerObjectiveConfig
from equilibrate.config.sources import reads_text, sources_of
from equilibrate.config.train import TrainConfig
from equilibrate.config.training import AdapterConfig, TrainingGroup
from equilibrate.errors import ConfigError
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import Role
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.planner.memory import Memory, generator, read, trained
from equilibrate.planner.tracing import Traced, trace
from equilibrate.text.vocabulary import start_of_critic

GIB = 2**30
CUDA_RESERVE = 2 * GIB
"""Of each GPU: context, kernels, NCCL and what the allocator cannot hand out; an estimate."""
ENGINE_RESERVE = GIB
"""Of an engine's memory: its sampler and the pass that it measures itself with; an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The processes of one group."""

    name: str
    processes: int
    memory: Memory
    """Of each."""
    gpus: float
    """Of each; 0 on a CPU."""
    turn: int = 0
    """Parts of one turn run at the same time."""


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
        samples = isinstance(config.objective, ArsConfig)
        if samples or config.needs_scorers or OBJECTIVES[config.objective.type].needs_reference:
            parts.append(replace(_scoring(config), turn=1))
        if samples or config.data.evaluation:
            parts.append(replace(_rollout(config), turn=1 if samples else 2))
        return parts
    learner = Part(**_group("learner", config.learner), memory=_learner(config))
    return [learner, _scoring(config), _rollout(config)]


def _group(name: str, group: WorkerGroup) -> dict[str, Any]:
    return {"name": name, "processes": group.num_workers, "gpus": group.gpus}


def _trainer(config: FitConfig) -> Memory:
    role: Role = "policy"
    if isinstance(config.objective, ScorerObjectiveConfig):
        role = config.objective.kinds[0]
    model = _traced(config, config.data.policy, role, config.trainer, config.max_length)
    return _trained([model], config.trainer)


def _learner(config: TrainConfig) -> Memory:
    data, length = config.data, config.rollout.max_model_len
    models = [_traced(config, data.policy, "policy", config.learner, length)]
    for kinds in config.critic_models:
        sources = [getattr(data, kind) or data.policy for kind in kinds]
        start = start_of_critic(data.policy, sources)
        models.append(_traced(config, str(start), kinds[0], config.learner, length))
    return _trained(models, config.learner)


def _trained(models: Sequence[Traced], group: TrainingGroup) -> Memory:
    return trained(models, zero_stage=group.zero_stage, num_ranks=group.num_workers)


def _scoring(config: TrainConfig | FitConfig) -> Part:
    """The reference, every folder that scores, and those of a judge."""
    folders = [source for _, _, source in sources_of(config.data) if source]
    folders += [path for path in config.judge.options.values() if Path(path).is_dir()]
    budget, length = config.scoring.max_tokens_per_batch, config.rollout.max_model_len
    models = [_traced(config, config.data.policy, "policy", None, length, budget=budget)]
    for folder in dict.fromkeys(folders):  # two heads of one model: once
        if not reads_text(folder):
            models.append(_traced(config, folder, "reward", None, length, budget=budget))
    return Part(**_group("scoring", config.scoring), memory=read(models))


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
    """A pass of as many tokens as the budget takes, in the longest rows that fill it."""
    budget = budget or (group.max_tokens_per_batch if group else length)
    accelerator = Accelerator(config.device, config.dtype)
    rows = -(-budget // length)
    if rows > 1:
        length = budget // rows
    # What a pass depends on.
    training = (group.adapter, group.activation_checkpointing) if group else None
    # Both kinds of scorer are one kind of model.
    kind: Role = "policy" if role == "policy" else "reward"
    return _trace_once(Path(folder), kind, accelerator, rows, length, training)


@lru_cache(maxsize=64)
def _trace_once(
    folder: Path,
    role: Role,
    accelerator: Accelerator,
    rows: int,
    length: int,
    training: tuple[AdapterConfig | None, bool] | None,
) -> Traced:
    """Several models of a run are alike, and what would help is asked of many settings."""
    group = None
    if training is not None:
        group = TrainingGroup(adapter=training[0], activation_checkpointing=training[1])
    return trace(folder, role, accelerator, rows=rows, length=length, group=group)


def too_large(parts: Sequence[Part], device: Device) -> list[Part]:
    """Parts that do not fit their share of a GPU; on a CPU those of a turn beside one another."""
    if not device.is_gpu:
        found = []
        for together in by_turn(parts):
            needed = sum(part.processes * part.memory.total for part in together)
            found += together if needed > device.memory else []
        return found
    return [part for part in parts if part.memory.total > room_for(part, device)]


def by_turn(parts: Sequence[Part]) -> list[list[Part]]:
    turns = sorted({part.turn for part in parts})
    return [[part for part in parts if part.turn == turn] for turn in turns]


def room_for(part: Part, device: Device) -> int:
    """Bytes of a GPU that one process of the part may take."""
    share = min(1.0, part.gpus or 1.0)
    if part.name == "rollout":
        return int(device.memory * share * GPU_UTILIZATION) - ENGINE_RESERVE
    return int((device.memory - CUDA_RESERVE) * share)


def remedies(config: TrainConfig | FitConfig) -> Iterator[tuple[list[str], Any]]:
    """Settings that need less memory, those that cost least first, each with what came before."""
    key = "trainer" if isinstance(config, FitConfig) else "learner"
    group: TrainingGroup = getattr(config, key)
    longest = config.max_length if isinstance(config, FitConfig) else config.rollout.max_model_len
    updates: list[dict[str, Any]] = []
    if not group.activation_checkpointing:
        updates.append({"activation_checkpointing": True})
    if group.num_workers > 1:
        updates += [{"zero_stage": stage} for stage in range(group.zero_stage + 1, 4)]
    if group.max_tokens_per_batch > longest:
        updates.append({"max_tokens_per_batch": longest})
    if isinstance(config, TrainConfig) and len(config.critic_models) > 1:
        updates.append({"two_headed_critic": True})
    if group.adapter is None:
        updates.append({"adapter": AdapterConfig()})
    together: dict[str, Any] = {}
    for update in updates:
        together |= update
        said = [f"{key}.{_setting(name, value)}" for name, value in together.items()]
        yield said, config.model_copy(update={key: group.model_copy(update=together)})


def _setting(name: str, value: object) -> str:
    if isinstance(value, AdapterConfig):
        return f"{name}.rank={value.rank}"
    return f"{name}={str(value).lower()}"
