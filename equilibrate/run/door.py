"""What can be known of a run's inputs before any process is started."""

from __future__ import annotations

from pathlib import Path

from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError
from equilibrate.sandbox.words import MAX_LENGTH
from equilibrate.types import ScorerKind

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
    # Late: it loads what the built-in world's settings need not wait for.
    from equilibrate.run.inputs import check_files

    check_files(config, run)


def require_path(key: str, path: str) -> Path:
    """Raises: DataError naming the key if there is nothing at the path."""
    if not Path(path).exists():
        from equilibrate.data.readers import is_hub_name  # late: as above

        hint = "give an existing file or folder"
        if is_hub_name(path):
            hint += (
                f"; a data set of the hub is brought here first: hf download {path} --repo-type "
                "dataset --local-dir FOLDER"
            )
        raise DataError(f"data.{key} ({path!r}) does not exist; {hint}")
    return Path(path)


def _require_sizes_of_the_world(config: TrainConfig | FitConfig) -> None:
    length = config.rollout.max_model_len
    if length > MAX_LENGTH:
        file = "sandbox.yaml" if isinstance(config, TrainConfig) else "fit.yaml"
        raise ConfigError(
            f"rollout.max_model_len ({length}) must be at most {MAX_LENGTH} in the built-in world, "
            f"which is what trains without data.policy; try --config deploy/configs/{file}, which "
            "has its sizes and learning rates, or give data.policy"
        )
