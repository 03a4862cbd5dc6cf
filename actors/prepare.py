"""What PPO starts from: the user's models and prompts, or those of the built-in world.

The world's data, base model, reward and cost model are stages: made once, found again by a hash of
what they depend on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from actors.offline import TrainWorkers, train_cost, train_reward, train_sft
from equilibrate.config import RunConfig
from equilibrate.errors import DataError
from equilibrate.evaluation import CallableJudge, Judge, RefusalMatcher
from equilibrate.sandbox.data import Sizes, write_world
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.oracle import Oracle
from equilibrate.sandbox.tokenizer import build_tokenizer
from equilibrate.stages import Stage, run_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Folders and files of one run."""

    policy: Path
    reward: Path
    cost: Path | None
    """None for plain PPO without AMA: nothing asks for a cost."""
    prompts: Path
    evaluation: Path | None
    ptx: Path | None
    judge: Judge


Announce = Callable[[str], None]


def prepare_inputs(config: RunConfig, run_folder: Path, announce: Announce) -> Inputs:
    """Raises: DataError naming the key of a path that does not exist."""
    if config.data.is_built_in:
        return _make_world(config, run_folder / "stages", announce)
    data = config.data
    return Inputs(
        policy=_existing("policy", data.policy),
        reward=_existing("reward", data.reward),
        cost=_existing("cost", data.cost) if data.cost else None,
        prompts=_existing("prompts", data.prompts),
        evaluation=_existing("evaluation", data.evaluation) if data.evaluation else None,
        ptx=_existing("ptx", data.ptx) if data.ptx else None,
        judge=RefusalMatcher(),
    )


def _existing(key: str, path: str) -> Path:
    if not Path(path).exists():
        raise DataError(f"data.{key} ({path!r}) does not exist; give an existing file or folder")
    return Path(path)


def _make_world(config: RunConfig, root: Path, announce: Announce) -> Inputs:
    """World -> base model -> reward and cost model, the last two side by side."""
    world_stage = _world_stage(config)
    world = _run(world_stage, root, announce)
    base_stage = _base_stage(config, world_stage, world)
    base = _run(base_stage, root, announce)
    scorers = [_scorer_stage(config, kind, base_stage, base, world) for kind in ("reward", "cost")]
    with ThreadPoolExecutor(len(scorers)) as threads:
        reward, cost = threads.map(lambda stage: _run(stage, root, announce), scorers)
    return Inputs(
        policy=base,
        reward=reward,
        cost=cost,
        prompts=world / "prompts",
        evaluation=world / "evaluation",
        ptx=world / "base",
        judge=CallableJudge("oracle", Oracle.from_seed(config.sandbox.seed).judge),
    )


def _run(stage: Stage, root: Path, announce: Announce) -> Path:
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


def _base_stage(config: RunConfig, world_stage: Stage, world: Path) -> Stage:
    sandbox = config.sandbox

    def make(folder: Path) -> None:
        train_sft(
            world / "model",
            world / "base",
            folder,
            steps=sandbox.base_steps,
            seed=sandbox.seed,
            workers=_workers(config, threads=config.cpu_threads),
        )

    inputs = {"world": world_stage.key, "steps": sandbox.base_steps, "dtype": config.dtype}
    return Stage(name="base", inputs=inputs, make=make)


def _scorer_stage(
    config: RunConfig, kind: str, base_stage: Stage, base: Path, world: Path
) -> Stage:
    train = {"reward": train_reward, "cost": train_cost}[kind]

    def make(folder: Path) -> None:
        train(
            base,
            world / f"preferences_{kind}",
            folder,
            seed=config.sandbox.seed,
            # The two scorers train at the same time and share the cores.
            workers=_workers(config, threads=max(1, config.cpu_threads // 2)),
        )

    return Stage(name=kind, inputs={"base": base_stage.key, "dtype": config.dtype}, make=make)


def _workers(config: RunConfig, *, threads: int) -> TrainWorkers:
    return TrainWorkers(
        threads=threads,
        gpus=config.learner.gpus,
        device=config.device,
        dtype=config.dtype,
        max_restarts=config.max_restarts,
    )
