"""Where the ranks of a learner meet: a store that rank 0 opens, and keeps, before it says where."""

from __future__ import annotations

from dataclasses import dataclass

import ray

_kept: list[object] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Address of rank 0's machine and the port that its process listens to."""

    address: str
    port: int

    def environment(self, *, rank: int, world_size: int) -> dict[str, str]:
        """What `torch.distributed` reads to join."""
        return {
            "RANK": str(rank),
            # Ray shows each worker its own GPU alone.
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            # The store is open already: rank 0 joins it like the others.
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }


def open_meeting() -> Meeting:
    """Open the store in this process, on a port that the system chooses, until the process ends."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address = ray.util.get_node_ip_address()
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
    _kept.append(store)
    return Meeting(address=address, port=store.port)
