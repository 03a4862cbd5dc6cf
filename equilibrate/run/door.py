"""What can be known of a run's inputs before any process is started."""

from __future__ import annotations

from pathlib import Path

from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.data.leakage import check_disjoint
from equilibrate.data.tables import load_columns
from equilibrate.errors import DataError
from equilibrate.fdc.dataset import read_prompts
from equilibrate.models.sidecar import read_sidecar
from equilibrate.text.renderer import Renderer
from equilibrate.types import Prompt, ScorerKind

SCORERS: tuple[ScorerKind, ...] = ("reward", "cost")


def check_inputs(config: TrainConfig | FitConfig) -> None:
    """Read what is cheap to read of the user's folders and files, the prompts in full.

    Raises: DataError naming the key, the file and what is wrong with it.
    """
    data = config.data
    if data.is_built_in:
        return
    policy = require_model("policy", data.policy)
    for kind in SCORERS:
        if folder := getattr(data, kind):
            read_sidecar(require_model(kind, folder), kind=kind)
    training: list[Prompt] = []
    if isinstance(config, TrainConfig):
        training = _prompts(config, policy, require_path("prompts", config.data.prompts))
        if config.data.ptx:
            load_columns(require_path("ptx", config.data.ptx), ("prompt", "response"))
    else:
        load_columns(require_path("train", config.data.train), ("prompt",))
    if data.evaluation:
        held_out = _prompts(config, policy, require_path("evaluation", data.evaluation))
        check_disjoint(training, held_out)


def require_path(key: str, path: str) -> Path:
    """Raises: DataError naming the key if there is nothing at the path."""
    if not Path(path).exists():
        raise DataError(f"data.{key} ({path!r}) does not exist; give an existing file or folder")
    return Path(path)


def require_model(key: str, path: str) -> Path:
    """Raises: DataError naming the key and what the folder lacks."""
    folder = require_path(key, path)
    if not (folder / "config.json").is_file():
        raise DataError(
            f"data.{key} ({path!r}) must be a model folder with a config.json; there is none"
        )
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"data.{key} ({path!r}) must hold its weights as *.safetensors; there are none"
        )
    return folder


def _prompts(config: TrainConfig | FitConfig, policy: Path, file: Path) -> list[Prompt]:
    longest = config.rollout.max_model_len - config.rollout.max_new_tokens
    return read_prompts(file, Renderer(policy).prompt_ids, max_tokens=longest).prompts
