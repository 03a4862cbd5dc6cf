"""The user's folders and files, read as far as that is cheap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equilibrate.config.fit import ArsConfig, FitConfig, ScorerObjectiveConfig
from equilibrate.config.inputs import InputFile
from equilibrate.config.sources import reads_text, sources_of
from equilibrate.config.train import TrainConfig
from equilibrate.data.columns import require_text
from equilibrate.data.records import said
from equilibrate.data.rows import RejectedRows, check_disjoint, prompt_key
from equilibrate.data.tables import SFT_COLUMNS, load_table
from equilibrate.errors import DataError
from equilibrate.fdc.sampler import FdcSampler
from equilibrate.fdc.schedules import make_schedule
from equilibrate.learning.other_tokens import check_readable
from equilibrate.learning.sources import check_source
from equilibrate.models.folders import check_folder, check_models, check_positions, check_sampled
from equilibrate.models.sidecar import is_scorer
from equilibrate.models.skeleton import build_empty
from equilibrate.models.trainable import require_trainable
from equilibrate.offline.labelled import chosen_columns, naming
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.run.door import require_files, require_path
from equilibrate.run.folder import read_fitting
from equilibrate.text.renderer import Renderer
from equilibrate.text.vocabulary import other_tokens, start_of_critic
from equilibrate.types import Category, Conversation, Prompt, ScorerKind, as_conversation


def check_files(config: TrainConfig | FitConfig, run: Path | None) -> None:
    """`check_inputs` of a run that does not start from the built-in world."""
    data = config.data
    policy = require_path("policy", data.policy)
    scorers = _check_sources(config)
    objective = config.objective if isinstance(config, FitConfig) else None
    if isinstance(objective, ScorerObjectiveConfig) and is_scorer(policy):
        for kind in objective.kinds:
            check_folder(policy, kind)  # it goes on
    else:
        check_models(policy, [(folder, kind) for _, kind, folder in scorers])
    _check_trained(config, policy)
    samples_to_learn = isinstance(config, TrainConfig) or isinstance(config.objective, ArsConfig)
    samplers = [policy] if samples_to_learn or data.evaluation else []
    for folder in samplers:
        check_sampled(folder, config.device)
    others = _with_other_tokens(config, policy, scorers)
    readers = [folder for *_, folder in scorers if samples_to_learn and folder not in others]
    for folder in (*samplers, *readers):
        check_positions(folder, config.rollout.max_model_len)
    if isinstance(config, TrainConfig):
        training = _prompts(config, run, require_files("prompts", config.data.prompts))
    else:
        training = _check_answers(config, run, require_files("train", config.data.train))
    for folder in others:
        check_readable(folder, config.text, training, config.rollout.max_new_tokens)
    if isinstance(config, TrainConfig):
        make_sampler(config, training)
        if config.data.ptx:
            training += _check_texts(require_path("ptx", config.data.ptx))
    if data.evaluation:
        held_out = _prompts(config, run, require_files("evaluation", data.evaluation))
        check_disjoint(training, held_out)


def _check_trained(config: TrainConfig | FitConfig, policy: Path) -> None:
    """Raises: ConfigError if one of the models lacks the layers that the way of training needs."""
    if isinstance(config, FitConfig):
        group, trained = config.trainer, [policy]
    else:
        group, data = config.learner, config.data
        sources = [[getattr(data, kind) for kind in kinds] for kinds in config.critic_models]
        starts = [start_of_critic(policy, critic) for critic in sources if all(critic)]
        trained = [policy, *map(Path, starts)]
    if not group.asks_for_layers:
        return
    for folder in dict.fromkeys(trained):
        require_trainable(build_empty(folder, "policy"), group)


def _check_sources(config: TrainConfig | FitConfig) -> list[tuple[str, ScorerKind, Path]]:
    """Those of `sources_of` that are folders, which only need to exist so far."""
    folders = []
    for key, kind, source in sources_of(config.data):
        if reads_text(source):
            check_source(source)
        elif source:
            folders.append((key, kind, require_path(key, source)))
    return folders


def _with_other_tokens(
    config: TrainConfig | FitConfig, policy: Path, scorers: Sequence[tuple[str, ScorerKind, Path]]
) -> list[Path]:
    """The scorers that read decoded answers, which are those that are sampled."""
    others = []
    for key, _, folder in scorers:
        if difference := other_tokens(policy, folder):
            if isinstance(config, FitConfig) and not isinstance(config.objective, ArsConfig):
                raise DataError(
                    f"data.{key} ({folder}) reads other tokens than {policy} ({difference}), so "
                    f"only answers that are sampled, and objective.type ({config.objective.type}) "
                    "learns from given ones; give a scorer that was trained with the policy's "
                    "tokenizer, or leave it out"
                )
            others.append(folder)
    return others


def make_sampler(config: TrainConfig, prompts: Sequence[Prompt]) -> FdcSampler:
    """Raises: DataError if a class has no prompts, or too few, for its share."""
    return FdcSampler(
        prompts,
        make_schedule(config.fdc.schedule, config.fdc.mixture),
        prompts_per_iteration=config.rollout.prompts_per_iteration,
        copies=config.rollout.copies,
        iterations=config.iterations,
        when_short=config.fdc.when_short,
        file_shares={entry.file: entry.share for entry in config.data.prompts if entry.share},
        seed=config.seed,
    )


def _check_texts(data: Path) -> list[Prompt]:
    """The prompts of pretraining text; plain text has none."""
    rejected = RejectedRows(data)
    table = load_table(data, SFT_COLUMNS, rejected)
    columns = table.readable(lambda columns: require_text(columns, SFT_COLUMNS), rejected)
    return by_row([prompt for prompt in columns["prompt"] if prompt_key(prompt)])


def _check_answers(config: FitConfig, run: Path | None, data: Sequence[InputFile]) -> list[Prompt]:
    """The prompts that are learned from, in the amounts and columns that the objective needs."""
    if isinstance(config.objective, ArsConfig):
        return _prompts(config, run, data)  # their answers are sampled
    with naming(data):
        columns = chosen_columns(config, data, run)
        OBJECTIVES[config.objective.type].view(columns, config.objective, config.seed)
    return by_row(columns["prompt"])


def by_row(prompts: Sequence[str | Conversation]) -> list[Prompt]:
    """Prompts as `check_disjoint` takes them, named by their rows."""
    return [
        Prompt(
            prompt_id=f"row {row}",
            text=said(as_conversation(prompt)),
            token_ids=(),
            category=Category.GENERAL,
            messages=as_conversation(prompt),
        )
        for row, prompt in enumerate(prompts)
    ]


def _prompts(
    config: TrainConfig | FitConfig, run: Path | None, files: Sequence[InputFile]
) -> list[Prompt]:
    renderer = Renderer(config.data.policy, config.text)
    return read_fitting(files, renderer, config, run, tell=lambda message: None)
