"""What a run asks of its machines, held against what they have before anything is started."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equilibrate.config.base import WorkerGroup
from equilibrate.config.fit import ArsConfig, FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ResourceError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """`num_workers` processes of one kind; each reserves `amounts` on one machine."""

    name: str
    num_workers: int
    amounts: Mapping[str, float]
    """By Ray's names of resources: `CPU`, `GPU` and those that machines were given; above 0."""

    @classmethod
    def of(cls, name: str, group: WorkerGroup) -> Demand:
        amounts = {"CPU": group.cpus, "GPU": group.gpus, **group.resources}
        reserved = {resource: amount for resource, amount in amounts.items() if amount}
        return cls(name=name, num_workers=group.num_workers, amounts=reserved)

    @property
    def in_all(self) -> dict[str, float]:
        return {name: amount * self.num_workers for name, amount in self.amounts.items()}


def total_of(demands: Sequence[Demand]) -> dict[str, float]:
    """By resource."""
    total: dict[str, float] = {}
    for demand in demands:
        for name, amount in demand.in_all.items():
            total[name] = total.get(name, 0.0) + amount
    return total


_SETTINGS = {"CPU": "cpus", "GPU": "gpus"}


def check_capacity(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse a demand that the machines could not hold even when idle.

    Args:
        nodes: total resources of each machine.
    Raises: ResourceError naming the resource, the demand by kind of worker and what there is.
    """
    for resource, wanted in total_of(demands).items():
        setting = _SETTINGS.get(resource, f"resources.{resource}")
        total = sum(node.get(resource, 0.0) for node in nodes)
        if wanted > total + 1e-9:
            held = [f"{d.name} {d.in_all[resource]:g}" for d in demands if resource in d.amounts]
            raise ResourceError(
                f"the run needs {wanted:g} {resource} ({', '.join(held)}) but the cluster has "
                f"{total:g}; lower num_workers or {setting} of a group, or add machines"
            )
        largest = max((node.get(resource, 0.0) for node in nodes), default=0.0)
        for demand in demands:
            amount = demand.amounts.get(resource, 0.0)
            if amount > largest + 1e-9:
                raise ResourceError(
                    f"one {demand.name} worker needs {amount:g} {resource} but "
                    f"the largest machine has {largest:g}; lower {demand.name}.{setting}"
                )


def check_this_machine(config: TrainConfig | FitConfig) -> None:
    """`check_capacity` where the run would have this machine alone, so without RAY_ADDRESS.

    Warns where a user's own model would train beside GPUs that stay idle.

    Raises: ResourceError.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    num_gpus = count_gpus()
    if num_gpus and config.device == "cpu" and not config.data.is_built_in:
        logger.warning(
            "device is cpu and this machine has %d GPU(s); try device=cuda dtype=bfloat16, and "
            "gpus of each group",
            num_gpus,
        )
    node = {"CPU": float(os.cpu_count() or 1), "GPU": float(num_gpus)}
    for together in _held_together(config):
        demands = [Demand.of(name, getattr(config, name)) for name in together]
        check_capacity(demands, [node])


def machine_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes of this machine, or of the container that this process is in."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    total = int(fields["MemTotal"].split()[0]) * 1024
    try:
        return min(total, int((cgroup / "memory.max").read_text()))
    except (OSError, ValueError):
        return total  # no container limit: no such file, or the word "max"


def count_gpus() -> int:
    """Of this machine, without loading a library that talks to them."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _held_together(config: TrainConfig | FitConfig) -> tuple[tuple[str, ...], ...]:
    """Groups of workers that run at the same time; offline training takes turns with the others."""
    if isinstance(config, TrainConfig):
        return (("rollout", "scoring", "learner"),)
    if not isinstance(config.objective, ArsConfig):
        return ("trainer",), ("scoring",), ("rollout",)
    # Its generator is there before the answers are scored, and stays unless it holds a GPU.
    trained = ("trainer",) if config.device == "cuda" else ("rollout", "trainer")
    return ("rollout", "scoring"), trained
