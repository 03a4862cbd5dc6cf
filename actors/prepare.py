"""What training starts from: the user's models and prompts, or those of the built-in world.

The world's data, base model, reward and cost model are stages: made once, found again by a hash of
what they depend on.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from actors.offline import TrainWorkers, train_cost, train_reward, train_sft
from equilibrate.config.base import RunConfig, WorkerGroup
from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.errors import DataError
from equilibrate.evaluation import CallableJudge, Judge, RefusalMatcher
from equilibrate.report import installed_versions
from equilibrate.run.stages import Stage, run_stage, short_hash
from equilibrate.sandbox.data import Sizes, write_world
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.oracle import Oracle
from equilibrate.sandbox.tokenizer import build_tokenizer
from equilibrate.types import ScorerKind

STAGES = "stages"
"""Folder of what a run makes before it trains, in the run's own."""
SCORERS: tuple[ScorerKind, ...] = ("reward", "cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Model folders of one run, and what it is measured by."""

    policy: Path
    reward: Path | None
    cost: Path | None
    """None where nothing asks for it: for a cost, plain PPO without AMA."""
    ptx: Path | None
    evaluation: Path | None
    judge: Judge
    shared_base: Path | None = None
    """The file of `shared_base`; None where the base is to be sampled whatever others found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs(Models):
    """Folders and files of one run of PPO."""

    prompts: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FitInputs(Models):
    """Folders and files of one offline training."""

    train: Path | None
    """None in the built-in world, which writes pairs in the amounts that are asked for."""
    prompts: Path | None
    """None where `train` holds the prompts."""


Announce = Callable[[str], None]


def prepare_inputs(config: TrainConfig, stages: Path, announce: Announce) -> Inputs:
    """Raises: DataError naming the key of a path that does not exist."""
    data = config.data
    if data.is_built_in:
        world = _make_world(config, stages, announce, workers=config.learner, scorers=SCORERS)
        models, prompts = world.models(config), world.data / "prompts"
        inputs = Inputs(**models, ptx=world.data / "base", prompts=prompts)
    else:
        prompts = _required("prompts", data.prompts)
        inputs = Inputs(**_models(config), ptx=_existing("ptx", data.ptx), prompts=prompts)
    return replace(inputs, shared_base=shared_base(config, inputs, stages))


def prepare_fit_inputs(config: FitConfig, stages: Path, announce: Announce) -> FitInputs:
    """Raises: DataError naming the key of a path that does not exist."""
    data = config.data
    if data.is_built_in:
        scorers = SCORERS if config.needs_scorers else ()
        world = _make_world(config, stages, announce, workers=config.trainer, scorers=scorers)
        models, prompts = world.models(config), world.data / "prompts"
        inputs = FitInputs(**models, ptx=None, train=None, prompts=prompts)
    else:
        train = _required("train", data.train)
        inputs = FitInputs(**_models(config), ptx=None, train=train, prompts=None)
    return replace(inputs, shared_base=shared_base(config, inputs, stages))


def stages_of(run: Path) -> Path:
    """Where a run's own stages are; a study links them to a folder that its runs share."""
    folder = run / STAGES
    if folder.is_symlink() and not folder.exists():
        folder.unlink()  # what it shared is gone, and made again here
    return folder


def identity(path: Path) -> str:
    """What a stage that reads a file or folder depends on: where it is and when it last changed."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    changed = max((file.stat().st_mtime_ns for file in files), default=0)
    return f"{path.resolve()}@{changed}"


def shared_base(config: RunConfig, inputs: Models, stages: Path) -> Path | None:
    """Where runs with these stages keep what the starting policy answers to the held-out prompts.

    None without such prompts.
    """
    if inputs.evaluation is None:
        return None
    sampling = config.rollout
    depends = {
        "policy": identity(inputs.policy),
        "evaluation": identity(inputs.evaluation),
        "seed": config.seed,
        "device": config.device,
        "dtype": config.dtype,
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_new_tokens,
        "max_model_len": sampling.max_model_len,
        # The aligned model is sampled by what is installed today, and so must the base be.
        "versions": installed_versions(),
    }
    return stages / f"answers-of-base-{short_hash(depends)}.json"


def _models(config: TrainConfig | FitConfig) -> dict[str, Any]:
    data = config.data
    return {
        "policy": _required("policy", data.policy),
        "reward": _existing("reward", data.reward),
        "cost": _existing("cost", data.cost),
        "evaluation": _existing("evaluation", data.evaluation),
        "judge": RefusalMatcher(),
    }


def _existing(key: str, path: str) -> Path | None:
    return _required(key, path) if path else None


def _required(key: str, path: str) -> Path:
    if not Path(path).exists():
        raise DataError(f"data.{key} ({path!r}) does not exist; give an existing file or folder")
    return Path(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    data: Path
    base: Path
    scorers: dict[ScorerKind, Path]

    def models(self, config: RunConfig) -> dict[str, Any]:
        oracle = Oracle.from_seed(config.sandbox.seed)
        return {
            "policy": self.base,
            "reward": self.scorers.get("reward"),
            "cost": self.scorers.get("cost"),
            "evaluation": self.data / "evaluation",
            "judge": CallableJudge("oracle", oracle.judge),
        }


def _make_world(
    config: RunConfig,
    root: Path,
    announce: Announce,
    *,
    workers: WorkerGroup,
    scorers: Sequence[ScorerKind],
) -> _World:
    """World -> base model -> reward and cost model, the last two side by side."""
    gpus = workers.gpus
    with _one_at_a_time(root, config.sandbox.seed):
        world_stage = _world_stage(config)
        world = make_or_find(world_stage, root, announce)
        base_stage = _base_stage(config, world_stage, world, gpus)
        base = make_or_find(base_stage, root, announce)
        stages = [_scorer_stage(config, kind, base_stage, base, world, gpus) for kind in scorers]
        with ThreadPoolExecutor(max(1, len(stages))) as threads:
            made = threads.map(lambda stage: make_or_find(stage, root, announce), stages)
            return _World(data=world, base=base, scorers=dict(zip(scorers, made, strict=True)))


@contextmanager
def _one_at_a_time(root: Path, seed: int) -> Iterator[None]:
    """Runs of a seed may share base and scorers: the first makes them while the others wait."""
    root.mkdir(parents=True, exist_ok=True)
    file = os.open(root / f".seed-{seed}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def make_or_find(stage: Stage, root: Path, announce: Announce) -> Path:
    """`run_stage`, and a word on what it does."""
    if stage.is_made(root):
        announce(f"{stage.name}: found")
        return run_stage(stage, root)
    announce(f"{stage.name}: making")
    start = time.perf_counter()
    folder = run_stage(stage, root)
    announce(f"{stage.name}: made in {time.perf_counter() - start:.0f} s")
    return folder


def _world_stage(config: RunConfig) -> Stage:
    sandbox = config.sandbox
    sizes = Sizes(
        reward_pairs=sandbox.pairs,
        cost_pairs=sandbox.pairs // 2,
        evaluation_per_cell=sandbox.evaluation_per_cell,
    )

    def make(folder: Path) -> None:
        disable_progress_bar()
        write_world(folder, seed=sandbox.seed, sizes=sizes)
        tokenizer = build_tokenizer()
        model = build_model(tokenizer, seed=sandbox.seed)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")

    return Stage(name="world", inputs={"seed": sandbox.seed, **asdict(sizes)}, make=make)


def _base_stage(config: RunConfig, world_stage: Stage, world: Path, gpus: float) -> Stage:
    sandbox = config.sandbox

    def make(folder: Path) -> None:
        train_sft(
            world / "model",
            world / "base",
            folder,
            steps=sandbox.base_steps,
            seed=sandbox.seed,
            workers=_workers(config, gpus, threads=config.cpu_threads),
        )

    inputs = {"world": world_stage.key, "steps": sandbox.base_steps, "dtype": config.dtype}
    return Stage(name="base", inputs=inputs, make=make)


def _scorer_stage(
    config: RunConfig,
    kind: ScorerKind,
    base_stage: Stage,
    base: Path,
    world: Path,
    gpus: float,
) -> Stage:
    train = {"reward": train_reward, "cost": train_cost}[kind]

    def make(folder: Path) -> None:
        train(
            base,
            world / f"preferences_{kind}",
            folder,
            seed=config.sandbox.seed,
            # The two scorers train at the same time and share the cores.
            workers=_workers(config, gpus, threads=max(1, config.cpu_threads // 2)),
        )

    return Stage(name=kind, inputs={"base": base_stage.key, "dtype": config.dtype}, make=make)


def _workers(config: RunConfig, gpus: float, *, threads: int) -> TrainWorkers:
    return TrainWorkers(
        threads=threads,
        gpus=gpus,
        device=config.device,
        dtype=config.dtype,
        max_restarts=config.max_restarts,
    )
