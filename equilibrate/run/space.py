"""The disk that a run needs, held against what is free before anything is started.

DeepSpeed's files hold float32 numbers whatever the dtype: at ZeRO-0 and 3 each weight with the two
moments of Adam, at ZeRO-1 and 2 a second copy of the weight too. All else is small beside them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equilibrate.config.align import Journey
from equilibrate.config.fit import FitConfig, ScorerObjectiveConfig
from equilibrate.config.train import TrainConfig
from equilibrate.config.training import AdapterConfig
from equilibrate.errors import ResourceError
from equilibrate.models.folders import Role

FLOAT = 4
STATE_BYTES = {0: 12, 1: 16, 2: 16, 3: 12}
"""Bytes of a checkpoint for each weight, by ZeRO stage; measured, and the same for any ranks."""
REPORT_BYTES = 5_000_000
"""Nearly all of it the library that draws the plots, which stands in the page."""
WORLD_WEIGHTS = 838_272
"""Of each model of the built-in world."""
WORLD_BYTES = 6_000_000
"""Of the data of the built-in world, without its pairs."""
PAIR_BYTES = 217
ANSWER_FACTOR = 4
"""Bytes of the answers as arrays, for each of the file that they are read from."""
_OURS = ("checkpoints", "training", "aligned", "last", "reward", "cost", "scorer", "stages")
_TEXTS = (".json", ".jinja", ".txt", ".model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Bytes that a run writes under its output."""

    parts: Mapping[str, int]
    """What stays at its end."""
    writing: int
    """How much more there is at one time, while a checkpoint is written."""

    @property
    def left(self) -> int:
        return sum(self.parts.values())

    @property
    def peak(self) -> int:
        return self.left + self.writing

    def describe(self) -> str:
        parts = [f"{name} {shown(size)}" for name, size in self.parts.items() if size]
        return f"{shown(self.peak)} ({', '.join([*parts, f'while writing {shown(self.writing)}'])})"


def space_of(config: TrainConfig | FitConfig, *, unmade: str = "") -> Space:
    """Of one run.

    Args: unmade: model folder that stands for those which an earlier step is still to make.
    Raises: DataError for a model folder that transformers cannot tell the size of.
    """
    adapter = (config.trainer if isinstance(config, FitConfig) else config.learner).adapter
    policy = _Model.of(config.data.policy, "policy", unmade, adapter)
    world = {"world": _world_bytes(config)} if config.data.is_built_in else {}
    if isinstance(config, FitConfig):
        return _of_fit(config, policy, unmade, world)
    data = config.data
    sources = [
        [] if data.is_built_in else [getattr(data, kind) for kind in kinds]
        for kinds in config.critic_models
    ]
    folders = [_start_of_critic(_there(data.policy, unmade), critic) for critic in sources]
    scorers = [_Model.of(folder, "reward", unmade, adapter) for folder in folders]
    stage, averages = config.learner.zero_stage, config.learner.average_decay > 0
    checkpoint = sum(model.state(stage) for model in (policy, *scorers))
    checkpoint += averages * FLOAT * policy.weights
    return Space(
        parts={
            "checkpoints": config.keep_checkpoints * checkpoint,
            "exported model": policy.exported * (2 if averages else 1),
            "report": REPORT_BYTES,
            **world,
        },
        writing=checkpoint,
    )


def _of_fit(config: FitConfig, policy: _Model, unmade: str, world: Mapping[str, int]) -> Space:
    data, model = config.data, policy
    if isinstance(config.objective, ScorerObjectiveConfig):
        model = _Model.of(data.policy, config.objective.kinds[0], unmade, config.trainer.adapter)
    state = model.state(config.trainer.zero_stage)
    return Space(
        parts={
            "model": model.exported,
            "answers": ANSWER_FACTOR * sum(_size(file.path) for file in data.train),
            "report": REPORT_BYTES,
            **world,
        },
        # The last checkpoint is removed when the model is written.
        writing=max(state, model.exported) + state - model.exported,
    )


def space_of_journey(journey: Journey) -> Space:
    """Of all steps: what each leaves, and the most that there is at one time."""
    parts: dict[str, int] = {}
    peak = 0
    for step in journey.steps():
        space = space_of(step.config, unmade=journey.config.policy)
        peak = max(peak, sum(parts.values()) + space.peak)
        parts[step.name] = space.left
    return Space(parts=parts, writing=max(0, peak - sum(parts.values())))


def check_space(space: Space, output: Path, runs: Sequence[Path]) -> str:
    """What the run needs and what there is, in one line.

    Args: runs: folders of the run or of its steps; what an earlier attempt left there counts.
    Raises: ResourceError if less is free than is still to be written.
    """
    place = next(path for path in (output, *output.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    written = sum(_size(run / name) for run in runs for name in _OURS)
    # A merged policy was made before anything was counted, and is no part of what is to come.
    written -= sum(_size(made) for run in runs for made in (run / "stages").glob("policy-*"))
    needed = max(0, space.peak - written)
    if needed > free:
        there = f", of which {shown(written)} are there already" if written else ""
        raise ResourceError(
            f"{output}: the run writes up to {space.describe()}{there}, and {shown(free)} are free "
            "there; free space, give another output, or lower keep_checkpoints"
        )
    return f"{space.describe()}; free {shown(free)}"


def require_space(config: TrainConfig | FitConfig) -> str:
    """`check_space` of one run."""
    output = Path(config.output)
    return check_space(space_of(config), output, [output])


def require_space_of_journey(journey: Journey) -> str:
    """`check_space` of all steps."""
    steps = [Path(step.config.output) for step in journey.steps()]
    return check_space(space_of_journey(journey), Path(journey.config.output), steps)


def shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    weights: int
    trained: int
    """All weights, or those of an adapter."""
    texts: int
    """Bytes of tokenizer and config."""

    @classmethod
    def of(cls, folder: str, role: Role, unmade: str, adapter: AdapterConfig | None) -> _Model:
        if not folder:
            return cls(weights=WORLD_WEIGHTS, trained=WORLD_WEIGHTS, texts=0)
        path = _there(folder, unmade)
        # Late: the built-in world's settings need not wait for it.
        from equilibrate.models.lora import num_trained
        from equilibrate.models.sidecar import num_heads
        from equilibrate.models.skeleton import build_empty

        model = build_empty(path, role, num_labels=num_heads(path))
        texts = sum(file.stat().st_size for file in path.iterdir() if file.suffix in _TEXTS)
        weights = sum(p.numel() for p in model.parameters())
        trained = num_trained(model, adapter) if adapter else weights
        return cls(weights=weights, trained=trained, texts=texts)

    @property
    def exported(self) -> int:
        by_itself = self.trained if self.trained < self.weights else 0
        return FLOAT * (self.weights + by_itself) + self.texts

    def state(self, zero_stage: int) -> int:
        return STATE_BYTES[zero_stage] * self.trained


def _there(folder: str, unmade: str) -> Path:
    return Path(folder if Path(folder).exists() or not unmade else unmade)


def _start_of_critic(policy: Path, scorers: Sequence[str]) -> str:
    if not scorers or not all(scorers):  # of the built-in world, or still to be made
        return ""
    from equilibrate.text.vocabulary import start_of_critic  # late: as above

    return str(start_of_critic(policy, scorers))


def _world_bytes(config: TrainConfig | FitConfig) -> int:
    """Data, first weights, base and the two scorers, which learn from pairs, the cost from half."""
    return 4 * FLOAT * WORLD_WEIGHTS + WORLD_BYTES + PAIR_BYTES * config.sandbox.pairs * 3 // 2


def _size(path: Path) -> int:
    """Bytes of a file, or of all below a folder; what is linked is elsewhere."""
    if path.is_symlink() or not path.exists():
        return 0
    if path.is_file():
        return path.stat().st_size
    below = (Path(parent, name) for parent, _, files in os.walk(path) for name in files)
    return sum(file.lstat().st_size for file in below if not file.is_symlink())
