"""Where the numbers go: `metrics.jsonl` is the truth, everything else mirrors it.

A mirror may be lost without losing the run, so it keeps no offsets: it is told by iteration what to
forget.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from equilibrate.errors import DataError
from equilibrate.run.disk import as_resource_error
from equilibrate.run.metrics import require_known
from equilibrate.run.progress import ProgressMirror

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
SAMPLES_FILE = "samples.jsonl"

Row = dict[str, Any]


class Mirror(Protocol):
    """A copy of the numbers for people to look at."""

    def write(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def write_seconds(self, iteration: int, seconds: Mapping[str, float]) -> None: ...

    def forget_from(self, iteration: int) -> None:
        """This iteration and later ones will be written again."""

    def close(self) -> None: ...


def write_whole(path: Path, text: str) -> None:
    """Write the file whole or not at all: no reader, in whatever process, sees a half.

    Raises: ResourceError if the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with as_resource_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # Else a power cut could leave the new name on an empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)


def append_row(file: IO[bytes], row: Mapping[str, Any]) -> None:
    """One JSON line, flushed. Equal rows give equal bytes; nan and inf become null."""
    line = json.dumps(_plain(row), sort_keys=True, allow_nan=False, ensure_ascii=False)
    file.write(line.encode() + b"\n")
    file.flush()


def read_rows(path: Path) -> list[Row]:
    """All complete rows; a missing file has none, and a last line cut by a kill is left out.

    Raises: DataError for a broken line that is not the last.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number} ({line[:60]!r}) must be one JSON object") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number} ({line[:60]!r}) must be one JSON object")
        rows.append(row)
    return rows


class JsonlFile:
    """An append-only file of rows that can be cut back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with as_resource_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            self._cut_torn_line()

    def append(self, row: Mapping[str, Any]) -> None:
        with as_resource_error(self.path):
            append_row(self._file, row)

    def sync(self) -> None:
        with as_resource_error(self.path):
            os.fsync(self._file.fileno())

    def size(self) -> int:
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        """Forget all behind `size`, and a line that it cuts in two.

        Raises: DataError if the file is shorter: rows that a checkpoint counts on are gone.
        """
        if size > self.size():
            raise DataError(
                f"{self.path} ({self.size()} bytes) must hold at least the {size} bytes that the "
                "checkpoint remembers; restore the file or start a new run folder"
            )
        self._file.truncate(size)
        self._cut_torn_line()

    def keep_before(self, iteration: int) -> None:
        """Forget rows of this and later iterations."""
        kept = [row for row in read_rows(self.path) if row["iteration"] < iteration]
        self._file.truncate(0)
        for row in kept:
            self.append(row)

    def close(self) -> None:
        self._file.close()

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        self._file.truncate(content.rfind(b"\n") + 1)


class RunSink:
    """The `MetricSink` of a run: the truth, its timings, and mirrors."""

    def __init__(self, folder: Path, mirrors: Sequence[Mirror] = ()) -> None:
        self._metrics = JsonlFile(folder / METRICS_FILE)
        self._timings = JsonlFile(folder / TIMINGS_FILE)
        self._mirrors = tuple(GuardedMirror(mirror) for mirror in mirrors)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Raises: ValueError for a name without a row in `METRICS`."""
        require_known(values)
        self._metrics.append({"iteration": iteration, **values})
        for mirror in self._mirrors:
            mirror.write(iteration, values)

    def write_seconds(self, iteration: int, seconds: Mapping[str, float]) -> None:
        self._timings.append({"iteration": iteration, "seconds": seconds})
        for mirror in self._mirrors:
            mirror.write_seconds(iteration, seconds)

    def offset(self) -> int:
        """Bytes of the truth, on disk before a checkpoint counts on them."""
        self._metrics.sync()
        return self._metrics.size()

    def rewind(self, offset: int) -> None:
        self._metrics.truncate(offset)
        rows = read_rows(self._metrics.path)
        first_forgotten = rows[-1]["iteration"] + 1 if rows else 0
        self._timings.keep_before(first_forgotten)
        for mirror in self._mirrors:
            mirror.forget_from(first_forgotten)

    def close(self) -> None:
        self._metrics.close()
        self._timings.close()
        for mirror in self._mirrors:
            mirror.close()


class GuardedMirror:
    """A mirror that its first failure ends, with one warning: the run goes on without it."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror: Mirror | None = mirror
        self._name = type(mirror).__name__.removesuffix("Mirror")

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self._try(lambda mirror: mirror.write(iteration, values))

    def write_seconds(self, iteration: int, seconds: Mapping[str, float]) -> None:
        self._try(lambda mirror: mirror.write_seconds(iteration, seconds))

    def forget_from(self, iteration: int) -> None:
        self._try(lambda mirror: mirror.forget_from(iteration))

    def close(self) -> None:
        self._try(lambda mirror: mirror.close())

    def _try(self, call: Callable[[Mirror], None]) -> None:
        if self._mirror is None:
            return
        try:
            call(self._mirror)
        # Whatever it is: these are libraries that talk to networks, disks and terminals.
        except Exception as error:
            self._mirror = None
            logger.warning(
                "%s is off for the rest of the run, which goes on: %s", self._name, error
            )


class TensorBoardMirror:
    """Scalars under `metrics/` and `seconds/`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._purge_step: int | None = None
        self._num_files = 0

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self._write("metrics", iteration, values)

    def write_seconds(self, iteration: int, seconds: Mapping[str, float]) -> None:
        self._write("seconds", iteration, seconds)

    def forget_from(self, iteration: int) -> None:
        self.close()
        self._purge_step = iteration

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, group: str, iteration: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._open()
        for name, value in sorted(values.items()):
            if math.isfinite(value):
                self._writer.add_scalar(f"{group}/{name}", value, iteration)

    def _open(self) -> Any:
        from tensorboardX import SummaryWriter

        # File names hold whole seconds: without a suffix a quick restart overwrites its own start.
        self._num_files += 1
        return SummaryWriter(
            str(self._folder),
            purge_step=self._purge_step,
            flush_secs=10,
            filename_suffix=f".{os.getpid()}.{self._num_files}",
        )


class WandbMirror:
    """Scalars only, offline without a key."""

    def __init__(self, folder: Path, project: str) -> None:
        self._folder = folder
        self._project = project
        self._run: Any = None

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self._log(iteration, {f"metrics/{name}": value for name, value in values.items()})

    def write_seconds(self, iteration: int, seconds: Mapping[str, float]) -> None:
        self._log(iteration, {f"seconds/{name}": value for name, value in seconds.items()})

    def forget_from(self, iteration: int) -> None:
        """wandb keeps the first value of a step; what is written again is dropped there."""

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _log(self, iteration: int, values: Mapping[str, float]) -> None:
        if self._run is None:
            self._run = _start_wandb(self._folder, self._project)
        self._run.log({k: v for k, v in values.items() if math.isfinite(v)}, step=iteration)


def open_sink(
    folder: Path,
    *,
    iterations: int,
    wandb_project: str = "",
    log: IO[str] | None = None,
) -> RunSink:
    """The sink of a run folder: files, tensorboard, the console and, if named, wandb.

    Args: log: where progress goes; standard output by default.
    """
    mirrors: list[Mirror] = [
        TensorBoardMirror(folder / "tensorboard"),
        ProgressMirror(iterations=iterations, stream=log or sys.stdout),
    ]
    if wandb_project:
        mirrors.append(WandbMirror(folder, wandb_project))
    return RunSink(folder, mirrors)


def _start_wandb(folder: Path, project: str) -> Any:
    import wandb

    return wandb.init(
        project=project,
        dir=str(folder),
        mode="online" if os.environ.get("WANDB_API_KEY") else "offline",
        # Scalars only: neither code, nor console text, nor anything about the machine leaves it.
        settings=wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            host="-",
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
        ),
    )


def _plain(value: Any) -> Any:
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case Iterable():
            return [_plain(item) for item in value]
        case _:
            return _plain(float(value))
