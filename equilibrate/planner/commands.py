"""`python -m equilibrate plan`: memory by group, and what to change where it does not fit."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from equilibrate.config.fit import FitConfig
from equilibrate.config.sources import reads_text, sources_of
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, EquilibrateError, ResourceError
from equilibrate.models.folders import read_config
from equilibrate.planner.events import Simulated
from equilibrate.planner.hardware import GPUS
from equilibrate.planner.memory import Memory
from equilibrate.planner.plan import CUDA_RESERVE, Device, Part, by_turn, plan, remedies, too_large
from equilibrate.planner.speed import iteration_seconds
from equilibrate.run.capacity import machine_memory

logger = logging.getLogger(__name__)

SMALL = 20
"""Models whose weights are a smaller part of the memory than one in so many always fit."""
COLUMNS = ("weights", "gradients", "optimizer", "activations", "buffers")


def show_plan(config: TrainConfig | FitConfig, gpus: str) -> int:
    """Print the table.

    Args: gpus: kind and number, as H100:8; empty: this machine's memory, without GPUs.
    Raises: ResourceError if something does not fit; ConfigError for an unknown kind, or settings
        for another device.
    """
    device, number = _device(config, gpus)
    for source in (config.data.policy, *(source for *_, source in sources_of(config.data))):
        if source and not reads_text(source):
            read_config(source)  # by name, before transformers looks for it elsewhere
    parts = plan(config)
    print("\n".join(_table(parts)))
    if device.is_gpu:
        wanted = max(map(_gpus_for, by_turn(parts)))
        if wanted > number:
            raise ResourceError(
                f"the groups reserve {wanted} GPUs of {number}; lower num_workers or gpus"
            )
    misfits = too_large(parts, device)
    room = f"{_gb(device.memory)} of {device.name}"
    if not misfits:
        print(f"fits: {room}")
        if device.is_gpu and isinstance(config, TrainConfig):
            print(_speed(iteration_seconds(config, GPUS[device.name]), config.iterations))
        return 0
    names = ", ".join(part.name for part in misfits)
    raise ResourceError(f"{names}: more than {room}; {_advice(config, device, misfits)}")


def warn_of_memory(config: TrainConfig | FitConfig) -> None:
    """Log it where a run would not fit this machine, without GPUs; the run may try all the same.

    Small models are not looked at: a plan takes seconds.
    """
    data = config.data
    if config.device != "cpu" or data.is_built_in or os.environ.get("RAY_ADDRESS"):
        return
    device, _ = _device(config, "")
    folders = [getattr(data, key) for key in ("policy", "reward", "cost")]
    files = [
        file for folder in filter(None, folders) for file in Path(folder).glob("*.safetensors")
    ]
    if SMALL * sum(file.stat().st_size for file in files) < device.memory:
        return
    try:
        misfits = too_large(plan(config), device)
    except EquilibrateError:
        return  # nothing is planned for models of this kind
    if misfits:
        logger.warning(
            "the run may need more memory than %s has (%s); %s",
            device.name,
            _gb(device.memory),
            _advice(config, device, misfits),
        )


def _gpus_for(parts: Sequence[Part]) -> int:
    """Whole GPUs that hold all shares: the largest first, each where it still has room."""
    shares = sorted((part.gpus for part in parts for _ in range(part.processes)), reverse=True)
    whole = sum(math.ceil(share) for share in shares if share >= 1)
    free: list[float] = []
    for share in (share for share in shares if 0 < share < 1):
        place = next((i for i, room in enumerate(free) if share <= room + 1e-9), len(free))
        free[place:] = free[place:] or [1.0]
        free[place] -= share
    return whole + len(free)


def _speed(seconds: Simulated, iterations: int) -> str:
    parts = {name: getattr(seconds, name) for name in ("rollout", "scoring", "update", "sync")}
    shown = ", ".join(f"{name} {value:.0f}" for name, value in parts.items())
    hours = seconds.step * iterations / 3600
    return (
        f"about {seconds.step:.0f} s an iteration ({shown}), {hours:.1f} h for {iterations}, if "
        "answers are half as long as they may be and GPUs do as they did for others"
    )


def _advice(config: TrainConfig | FitConfig, device: Device, misfits: Sequence[Part]) -> str:
    """What makes all of it fit, or what is too large whatever is done."""
    shares = [part for part in misfits if 0 < part.gpus < 1]
    if device.is_gpu and shares and not too_large([_alone(part) for part in shares], device):
        return f"give {shares[0].name}.gpus a larger share of a GPU, up to 1"
    said: list[str] = []
    for said, changed in remedies(config):
        if not too_large(plan(changed), device):
            return f"it would fit with {' '.join(said)}"
    tried = f"not even {' '.join(said)} would do; " if said else ""
    larger = "more or larger GPUs" if device.is_gpu else "a larger machine"
    return f"{tried}take {larger}, or smaller models"


def _alone(part: Part) -> Part:
    return replace(part, gpus=1.0)


def _device(config: TrainConfig | FitConfig, gpus: str) -> tuple[Device, int]:
    if not gpus:
        if config.device == "cuda":
            raise ConfigError("device (cuda) needs to know the GPUs; try --gpus H100:8")
        return Device(name="this machine", memory=machine_memory(), is_gpu=False), 0
    kind, _, count = gpus.partition(":")
    if kind not in GPUS or not (count or "1").isdecimal() or count == "0":
        raise ConfigError(
            f"--gpus ({gpus}) must be a kind and a number, as H100:8; kinds are {', '.join(GPUS)}"
        )
    if config.device != "cuda":
        raise ConfigError(
            "device (cpu) has no GPUs; try device=cuda dtype=bfloat16, and gpus=1 of each group"
        )
    return Device(name=kind, memory=int(GPUS[kind].memory_bytes), is_gpu=True), int(count or 1)


def _table(parts: Sequence[Part]) -> list[str]:
    """GB of each process; of a GPU `CUDA_RESERVE` comes to that."""
    head = ["group", "processes", "GPUs each", *COLUMNS, "GB each"]
    rows = [head, *(_row(part) for part in parts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    if any(part.gpus for part in parts):
        lines.append(f"and {_gb(CUDA_RESERVE)} of each GPU for CUDA itself")
    return lines


def _row(part: Part) -> list[str]:
    memory: Memory = part.memory
    sizes = [f"{memory.parts()[name] / 1e9:.2f}" for name in COLUMNS]
    total = f"{memory.total / 1e9:.2f}"
    return [part.name, str(part.processes), f"{part.gpus:g}", *sizes, total]


def _gb(size: int) -> str:
    return f"{size / 1e9:.0f} GB"
