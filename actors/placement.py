"""What a run asks of the cluster: compared first, then reserved with a deadline.

A placement group that can never be ready makes Ray wait for ever and say nothing; so the demand is
held against the cluster before anything is asked, and the error names what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from equilibrate.errors import ResourceError
from equilibrate.run.capacity import Demand, check_capacity, total_of


class Reservation:
    """One placement group for the whole run, a bundle for each worker."""

    def __init__(self, demands: Sequence[Demand], timeout_seconds: float) -> None:
        """Raises: ResourceError if the cluster is too small, or not free before the deadline."""
        check_capacity(demands, live_machines())
        self._bundles: dict[str, range] = {}
        bundles: list[dict[str, float]] = []
        for demand in demands:
            self._bundles[demand.name] = range(len(bundles), len(bundles) + demand.num_workers)
            # Ray refuses an empty bundle, and a worker of zero cost still needs a place.
            bundles += [dict(demand.amounts) or {"CPU": 0.001}] * demand.num_workers
        self.group: PlacementGroup = placement_group(bundles, strategy="PACK")
        if not self.group.wait(timeout_seconds):
            free = _free_of_wanted(demands)
            remove_placement_group(self.group)
            raise ResourceError(
                f"the cluster is large enough but not free: after {timeout_seconds:g} s it has to "
                f"spare {free}; wait for other jobs or stop them"
            )

    def bundles(self, name: str) -> range:
        """Of the workers of a group, in their order."""
        return self._bundles[name]

    def bundles_by_node(self, name: str) -> list[int]:
        """The same with those of one machine side by side: neighbours talk most."""
        nodes = self._node_of_bundle()
        first_of = {nodes[bundle]: bundle for bundle in reversed(self._bundles[name])}
        return sorted(self._bundles[name], key=lambda bundle: (first_of[nodes[bundle]], bundle))

    def _node_of_bundle(self) -> dict[int, str]:
        table: dict[str, Any] = placement_group_table(self.group)
        return dict(table["bundles_to_node_id"])

    def release(self) -> None:
        remove_placement_group(self.group)


def live_machines() -> list[dict[str, float]]:
    """Total resources of each machine of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _free_of_wanted(demands: Sequence[Demand]) -> str:
    free = ray.available_resources()
    return ", ".join(
        f"{free.get(name, 0.0):g} {name} of the {amount:g} wanted"
        for name, amount in total_of(demands).items()
    )
