"""What every kind of run keeps in its folder: settings, seconds, results, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from equilibrate.config.base import RunConfig
from equilibrate.config.files import dump_config, load_run_config
from equilibrate.config.fit import FitConfig
from equilibrate.config.identity import (
    fixed_on_resume,
    input_paths,
    require_fixed,
    result_settings,
)
from equilibrate.config.inputs import InputFile
from equilibrate.config.train import TrainConfig
from equilibrate.data.rows import REJECTED_FILE, RejectedRows
from equilibrate.errors import ConfigError
from equilibrate.fdc.dataset import PromptReader
from equilibrate.run.checkpoint import LATEST, FolderLock
from equilibrate.run.contents import CARD_FILE, Contents, is_card
from equilibrate.run.disk import as_resource_error, require_writable
from equilibrate.run.door import require_path
from equilibrate.run.sinks import JsonlFile, read_rows, write_whole
from equilibrate.text.renderer import Renderer
from equilibrate.types import Prompt

PHASES_FILE = "phases.jsonl"
"""Seconds spent outside the loop."""
INPUTS_FILE = "inputs.json"
"""What the inputs held when the run began, by key."""
ALIGNED = "aligned"
"""Folder of the policy that a run made."""
STAGES = "stages"
"""Folder of what a run makes before it trains, in the run's own."""


def say(message: str) -> None:
    print(message, flush=True)


def stages_of(run: Path) -> Path:
    """Where a run's own stages are; a study links them to a folder that its runs share."""
    folder = run / STAGES
    if folder.is_symlink() and not folder.exists():
        folder.unlink()  # what it shared is gone, and made again here
    return folder


@contextmanager
def own_run_folder(config: RunConfig) -> Iterator[Path | None]:
    """The run's folder, ours alone until the context ends; None if it already holds this run.

    Raises: ConfigError for a folder whose run is of another kind or format, or has checkpoints
        that these settings could not go on from; DataError for an input that does not exist;
        ResourceError if the folder is in use or cannot be written.
    """
    run = Path(config.output).resolve()
    require_writable(run)
    with as_resource_error(run):
        run.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(run)
    try:
        inputs = json.dumps(_held_by_inputs(config, run), indent=1)
        if _is_finished(run, config, inputs):
            say(f"{run} already holds this run; change a setting or the output to run again")
            yield None
            return
        with as_resource_error(run):
            (run / "report.html").unlink(missing_ok=True)
            if is_card(card := run / ALIGNED / CARD_FILE):
                card.unlink()  # other weights may come in beside it
        write_whole(run / "config.yaml", dump_config(config))
        write_whole(run / INPUTS_FILE, inputs + "\n")
        yield run
    finally:
        lock.release()


def _held_by_inputs(config: RunConfig, run: Path) -> dict[str, str]:
    contents = Contents(stages_of(run))
    held = {}
    for key, path in input_paths(config).items():
        held[key] = contents.of(require_path(key.removeprefix("data."), str(path)))
    return held


def _is_finished(run: Path, config: RunConfig, inputs: str) -> bool:
    """Whether the folder holds what these settings and inputs lead to."""
    if not (run / "config.yaml").is_file():
        return False
    before = load_run_config(run)
    if type(before) is not type(config):
        raise ConfigError(
            f"output ({config.output}) holds a run of another kind; choose another output folder"
        )
    if result_settings(before) == result_settings(config):
        return (run / "report.html").is_file() and _read(run / INPUTS_FILE).strip() == inputs
    if (run / "checkpoints" / LATEST).is_file():
        require_fixed(fixed_on_resume(before), fixed_on_resume(config), run)
    return False


def _read(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


@contextmanager
def measured(run: Path, phase: str) -> Iterator[None]:
    """Adds the seconds of a phase outside the loop, which a resumed run enters again."""
    start = time.perf_counter()
    yield
    with closing(JsonlFile(run / PHASES_FILE)) as file:
        file.append({phase: time.perf_counter() - start})


def stage_seconds(run: Path) -> dict[str, float]:
    """Seconds of each phase outside the loop, over all attempts."""
    seconds: dict[str, float] = {}
    for row in read_rows(run / PHASES_FILE):
        for phase, value in row.items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    return seconds


def read_fitting(
    files: Sequence[InputFile],
    renderer: Renderer,
    config: TrainConfig | FitConfig,
    run: Path | None,
    tell: Callable[[str], None] = say,
) -> list[Prompt]:
    """The prompts of some files that leave room for an answer, each once.

    Args:
        run: its folder takes the rows that break a rule; None: nothing is written down.
        tell: takes what each file is, how many prompts it leaves out and why.
    Raises: DataError as `PromptReader.read`.
    """
    reader = PromptReader(
        renderer.prompt_ids,
        max_tokens=config.rollout.max_model_len - config.rollout.max_new_tokens,
        columns=config.data.columns,
    )
    prompts: list[Prompt] = []
    listed = None if run is None else run / REJECTED_FILE
    for file in files:
        name = file.path.name
        rejected = RejectedRows(
            file.path, max_fraction=config.data.max_rejected_fraction, file=listed
        )
        rows = reader.read(file, rejected)
        tell(f"{name}: {rows.about}")
        for reason, count in rows.dropped.items():
            tell(f"{name}: {count} prompts left out: {reason}")
        if rejected:
            tell(f"{name}: {len(rejected)} rows rejected" + (f", see {listed}" if listed else ""))
        prompts += rows.prompts
    return prompts
