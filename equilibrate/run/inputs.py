"""The user's folders and files, read as far as that is cheap."""

from __future__ import annotations

from pathlib import Path

from equilibrate.config.fit import ArsConfig, FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.data.columns import require_text
from equilibrate.data.rows import RejectedRows, check_disjoint
from equilibrate.data.tables import SFT_COLUMNS, load_table
from equilibrate.fdc.dataset import read_prompts
from equilibrate.models.folders import check_models
from equilibrate.offline.labelled import readable_columns
from equilibrate.run.door import SCORERS, require_path
from equilibrate.run.folder import rejected_rows
from equilibrate.text.renderer import Renderer
from equilibrate.types import Prompt


def check_files(config: TrainConfig | FitConfig, run: Path | None) -> None:
    """`check_inputs` of a run that does not start from the built-in world."""
    data = config.data
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


def _check_texts(data: Path) -> None:
    rejected = RejectedRows(data)
    table = load_table(data, SFT_COLUMNS, rejected)
    table.readable(lambda columns: require_text(columns, SFT_COLUMNS), rejected)


def _check_answers(config: FitConfig, run: Path | None, data: Path) -> None:
    if isinstance(config.objective, ArsConfig):
        _prompts(config, run, data)  # their answers are sampled
        return
    readable_columns(config, data, run)


def _prompts(config: TrainConfig | FitConfig, run: Path | None, file: Path) -> list[Prompt]:
    return read_prompts(
        file,
        Renderer(config.data.policy, config.text).prompt_ids,
        max_tokens=config.rollout.max_model_len - config.rollout.max_new_tokens,
        rejected=rejected_rows(file, config, run),
    ).prompts
