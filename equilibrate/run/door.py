"""What can be known of a run's inputs before any process is started."""

from __future__ import annotations

from pathlib import Path

from equilibrate.config.fit import ArsConfig, FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.data.columns import require_text
from equilibrate.data.rows import RejectedRows, check_disjoint
from equilibrate.data.tables import SFT_COLUMNS, load_table
from equilibrate.errors import ConfigError, DataError
from equilibrate.fdc.dataset import read_prompts
from equilibrate.models.folders import check_models
from equilibrate.offline.labelled import readable_columns
from equilibrate.run.folder import rejected_rows
from equilibrate.sandbox.model import MAX_LENGTH
from equilibrate.text.renderer import Renderer
from equilibrate.types import Prompt, ScorerKind

SCORERS: tuple[ScorerKind, ...] = ("reward", "cost")


def check_inputs(config: TrainConfig | FitConfig, run: Path | None = None) -> None:
    """Read what is cheap to read of the user's folders and files, the prompts in full.

    Args: run: the run's folder, which gets the rows that break a rule; None writes nothing.
    Raises: DataError naming the key or the file and what is wrong with it.
    """
    data = config.data
    if data.is_built_in:
        _require_sizes_of_the_world(config)
        return
    policy = require_path("policy", data.policy)
    scorers = {
        kind: require_path(kind, folder) for kind in SCORERS if (folder := getattr(data, kind))
    }
    check_models(policy=policy, **scorers)
    training: list[Prompt] = []
    if isinstance(config, TrainConfig):
        training = _prompts(config, run, require_path("prompts", config.data.prompts))
        if config.data.ptx:
            _check_texts(require_path("ptx", config.data.ptx))
    else:
        _check_answers(config, run, require_path("train", config.data.train))
    if data.evaluation:
        held_out = _prompts(config, run, require_path("evaluation", data.evaluation))
        check_disjoint(training, held_out)


def require_path(key: str, path: str) -> Path:
    """Raises: DataError naming the key if there is nothing at the path."""
    if not Path(path).exists():
        raise DataError(f"data.{key} ({path!r}) does not exist; give an existing file or folder")
    return Path(path)


def _check_texts(data: Path) -> None:
    rejected = RejectedRows(data)
    table = load_table(data, SFT_COLUMNS, rejected)
    table.readable(lambda columns: require_text(columns, SFT_COLUMNS), rejected)


def _check_answers(config: FitConfig, run: Path | None, data: Path) -> None:
    if isinstance(config.objective, ArsConfig):
        _prompts(config, run, data)  # their answers are sampled
        return
    readable_columns(config, data, run)


def _require_sizes_of_the_world(config: TrainConfig | FitConfig) -> None:
    length = config.rollout.max_model_len
    if length > MAX_LENGTH:
        file = "sandbox.yaml" if isinstance(config, TrainConfig) else "fit.yaml"
        raise ConfigError(
            f"rollout.max_model_len ({length}) must be at most {MAX_LENGTH} in the built-in world, "
            f"which is what trains without data.policy; try --config deploy/configs/{file}, which "
            "has its sizes and learning rates, or give data.policy"
        )


def _prompts(config: TrainConfig | FitConfig, run: Path | None, file: Path) -> list[Prompt]:
    return read_prompts(
        file,
        Renderer(config.data.policy, config.text).prompt_ids,
        max_tokens=config.rollout.max_model_len - config.rollout.max_new_tokens,
        rejected=rejected_rows(file, config, run),
    ).prompts
