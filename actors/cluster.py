"""Joining a Ray cluster, and leaving it in good order when the run is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import ray
from ray.exceptions import RayError, RayTaskError

from equilibrate.errors import ResourceError

logger = logging.getLogger(__name__)

PROBE_SECONDS = 10.0
"""Longest wait for a cluster's port."""
_REMEDY = "start one with `ray start --head`, or unset RAY_ADDRESS to use this machine alone"


class StopRequest:
    """Becomes true on SIGTERM or SIGINT; the loop saves and ends. A second signal ends at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        return self.requested

    def install(self) -> None:
        """Must follow `ray.init`, which puts its own SIGTERM handler in place."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.requested = True
        logger.warning("%s: saving after this iteration", signal.Signals(number).name)


def interrupt_on_sigterm() -> None:
    """SIGTERM breaks off what is under way with KeyboardInterrupt, as SIGINT does: the one error
    that Ray's waits let through. A second one ends at once.

    Must follow `ray.init`, as `StopRequest.install`.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handle)


@contextmanager
def ray_cluster() -> Iterator[None]:
    """The cluster of RAY_ADDRESS (set inside a Ray job), else one of this machine's own.

    Raises: ResourceError if the cluster does not answer, now or later, or one of our own does not
        start.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    require_answer(address)
    _join(address)
    try:
        yield
    except RayTaskError:
        raise  # a fault of the code that a worker ran
    except RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ResourceError(
            f"the Ray cluster at {address!r} failed ({type(error).__name__}: {reason}); see that "
            "its head is up, then the same command goes on from the last checkpoint"
        ) from error
    finally:
        ray.shutdown()


def require_answer(address: str) -> None:
    """Refuse a cluster whose port nobody listens to: Ray itself would try for many minutes.

    Args: address: `host:port`, with or without `ray://`; any other form is left to Ray.
    Raises: ResourceError.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"nothing answers at RAY_ADDRESS ({address}): {error}; {_REMEDY}"
        ) from error


def _join(address: str) -> None:
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            logging_level=logging.WARNING,
            log_to_driver=False,
            runtime_env={"env_vars": {"RAY_DEDUP_LOGS": "1"}} if address == "local" else None,
        )
    except Exception as error:
        # Ray raises nothing narrower where a node of its own is not up within 30 s.
        remedy = "try again when this machine is less busy" if address == "local" else _REMEDY
        raise ResourceError(
            f"the Ray cluster at {address!r} does not answer ({error}); {remedy}"
        ) from error
