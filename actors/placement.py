"""What a run asks of the cluster: compared first, then reserved with a deadline.

A placement group that can never be ready makes Ray wait for ever and say nothing; so the demand is
held against the cluster before anything is asked, and the error names what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from equilibrate.errors import ResourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """`num_workers` processes of one kind; each reserves `cpus` and `gpus` on one machine."""

    name: str
    num_workers: int
    cpus: float
    gpus: float


def check_capacity(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse a demand that the machines could not hold even when idle.

    Args:
        nodes: total resources of each machine, with the keys `CPU` and `GPU`.
    Raises: ResourceError naming the resource, the demand by kind of worker and what there is.
    """
    for resource, attribute in (("CPU", "cpus"), ("GPU", "gpus")):
        wanted = {d.name: d.num_workers * getattr(d, attribute) for d in demands}
        total = sum(node.get(resource, 0.0) for node in nodes)
        if sum(wanted.values()) > total + 1e-9:
            shares = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items() if amount)
            raise ResourceError(
                f"the run needs {sum(wanted.values()):g} {resource} ({shares}) but the cluster has "
                f"{total:g}; lower num_workers or {attribute} of a group, or add machines"
            )
        largest = max((node.get(resource, 0.0) for node in nodes), default=0.0)
        for demand in demands:
            if getattr(demand, attribute) > largest + 1e-9:
                raise ResourceError(
                    f"one {demand.name} worker needs {getattr(demand, attribute):g} {resource} but "
                    f"the largest machine has {largest:g}; lower {demand.name}.{attribute}"
                )


class Reservation:
    """One placement group for the whole run; `bundle_index` says where a worker belongs."""

    def __init__(self, demands: Sequence[Demand], timeout_seconds: float) -> None:
        """Raises: ResourceError if the cluster is too small, or not free before the deadline."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        check_capacity(demands, nodes)
        self._first = {
            demand.name: sum(d.num_workers for d in demands[:position])
            for position, demand in enumerate(demands)
        }
        bundles = [_bundle(demand) for demand in demands for _ in range(demand.num_workers)]
        self.group: PlacementGroup = placement_group(bundles, strategy="PACK")
        if not self.group.wait(timeout_seconds):
            free = ray.available_resources()
            remove_placement_group(self.group)
            raise ResourceError(
                f"the cluster is large enough but not free: after {timeout_seconds:g} s it has "
                f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU to spare of the "
                f"{sum(b.get('CPU', 0) for b in bundles):g} CPU and "
                f"{sum(b.get('GPU', 0) for b in bundles):g} GPU wanted; "
                "wait for other jobs or stop them"
            )

    def bundle_index(self, name: str, worker: int) -> int:
        return self._first[name] + worker

    def release(self) -> None:
        remove_placement_group(self.group)


def _bundle(demand: Demand) -> dict[str, float]:
    bundle = {"CPU": demand.cpus, "GPU": demand.gpus}
    # Ray refuses an empty bundle, and a worker of zero cost still needs a place.
    return {key: amount for key, amount in bundle.items() if amount} or {"CPU": 0.001}
