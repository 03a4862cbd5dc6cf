"""What every kind of run keeps in its folder: settings, seconds, results, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from equilibrate.config.base import RunConfig, SamplingConfig
from equilibrate.config.files import dump_config
from equilibrate.fdc.dataset import read_prompts
from equilibrate.run.checkpoint import FolderLock
from equilibrate.run.disk import as_resource_error, require_writable
from equilibrate.run.sinks import JsonlFile, read_rows, write_whole
from equilibrate.text.renderer import TextCodec
from equilibrate.types import Prompt

PHASES_FILE = "phases.jsonl"
"""Seconds spent outside the loop."""


@contextmanager
def claimed(config: RunConfig) -> Iterator[Path | None]:
    """The run's folder, ours alone until the context ends; None if it already holds this run.

    Raises: ResourceError if it is in use or cannot be written.
    """
    run = Path(config.output).resolve()
    require_writable(run)
    with as_resource_error(run):
        run.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(run)
    try:
        if _is_finished(run, config):
            say(f"{run} already holds this run; change a setting or the output to run again")
            yield None
            return
        with as_resource_error(run):
            (run / "report.html").unlink(missing_ok=True)
        write_whole(run / "config.yaml", dump_config(config))
        yield run
    finally:
        lock.release()


def _is_finished(run: Path, config: RunConfig) -> bool:
    written = run / "config.yaml"
    return (
        (run / "report.html").is_file()
        and written.is_file()
        and written.read_text() == dump_config(config)
    )


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


def read_fitting(path: Path, codec: TextCodec, rollout: SamplingConfig) -> list[Prompt]:
    """The prompts of a file that leave room for an answer; says how many it leaves out and why."""
    longest = rollout.max_model_len - rollout.max_new_tokens
    rows = read_prompts(path, codec.encode_prompt, max_tokens=longest)
    for reason, count in rows.dropped.items():
        say(f"{path.name}: {count} prompts left out: {reason}")
    return rows.prompts


def say(message: str) -> None:
    print(message, flush=True)
