"""What a run asks of the cluster: compared first, then reserved with a deadline.

A placement group that can never be ready makes Ray wait for ever and say nothing; so the demand is
held against the cluster before anything is asked, and the error names what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from equilibrate.errors import ResourceError
from equilibrate.run.capacity import Demand, check_capacity


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
