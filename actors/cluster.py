"""Joining a Ray cluster, and leaving it in good order when the run is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import ray
from ray.exceptions import AuthenticationError, RayError, RayTaskError

from equilibrate.errors import ResourceError

logger = logging.getLogger(__name__)

PROBE_SECONDS = 10.0
"""Longest wait for a cluster's port."""
HEAD_CHECK_SECONDS = 3.0
HEAD_LOST_SECONDS = 40.0
"""A head that does not listen for so long is gone. After 60 s Ray would end this process itself,
with exit code 1 and no word on how to go on."""
_GO_ON = "then the same command goes on from the last checkpoint"
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
    if address == "auto":
        address = _find_cluster()
    require_answer(address)
    _join(address)
    # Behind ray:// there is no such address, and the client's own connection tells the loss.
    address_of_head = getattr(ray.get_runtime_context(), "gcs_address", "")
    watch = HeadWatch(address_of_head, _end_without_head)
    try:
        yield
    except RayTaskError:
        raise  # a fault of the code that a worker ran
    except RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ResourceError(
            f"the Ray cluster at {address!r} failed ({type(error).__name__}: {reason}); see that "
            f"its head is up, {_GO_ON}"
        ) from error
    finally:
        watch.stop()
        ray.shutdown()


class HeadWatch:
    """Calls `lost` once the head of the cluster has stopped listening.

    In a thread: what the main one waits for may never come, and Ray tells it nothing.
    """

    def __init__(self, address: str, lost: Callable[[str], None]) -> None:
        """Args: address: `host:port`; one that does not answer from here is not watched."""
        self._address = address
        self._lost = lost
        self._stopped = threading.Event()
        if address and _answers(address):
            threading.Thread(target=self._watch, name="head watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        heard = time.monotonic()
        while not self._stopped.wait(HEAD_CHECK_SECONDS):
            if _answers(self._address):
                heard = time.monotonic()
            elif time.monotonic() - heard > HEAD_LOST_SECONDS:
                self._lost(self._address)
                return


def _answers(address: str) -> bool:
    try:
        require_answer(address)
    except ResourceError:
        return False
    return True


def _end_without_head(address: str) -> None:
    error = ResourceError(
        f"the head of the Ray cluster at {address} is gone; see that one is up, {_GO_ON}"
    )
    print(f"error: {error}", file=sys.stderr, flush=True)
    # Not by way of the main thread: leaving the cluster in good order would wait for its head.
    os._exit(error.exit_code)


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


def _find_cluster() -> str:
    """What `auto` stands for. Ray itself would take the last of several, or wait for a dead one.

    Raises: ResourceError unless this machine belongs to exactly one cluster.
    """
    from ray._private import services

    found = sorted(services.find_gcs_addresses())
    if len(found) == 1:
        return str(found[0])
    if found:
        raise ResourceError(
            f"RAY_ADDRESS is 'auto' and this machine belongs to {len(found)} Ray clusters; set it "
            f"to one of {', '.join(found)}"
        )
    raise ResourceError(f"RAY_ADDRESS is 'auto' and no Ray cluster runs here; {_REMEDY}")


def _join(address: str) -> None:
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            logging_level=logging.WARNING,
            log_to_driver=False,
            runtime_env={"env_vars": {"RAY_DEDUP_LOGS": "1"}} if address == "local" else None,
        )
    except (AuthenticationError, ConnectionError) as error:
        # Its port was seen to listen. Of a wrong token Ray tells its log alone.
        raise ResourceError(
            f"something listens at {address!r} that does not let us in as a Ray cluster would "
            f"({error}); if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
            "(or RAY_AUTH_TOKEN) as where its head was started"
        ) from error
    except Exception as error:
        # Ray raises nothing narrower, also where a node of its own is not up within 30 s.
        if "Version mismatch" in str(error):
            raise ResourceError(
                f"the Ray cluster at {address!r} has other software ({' '.join(str(error).split())}"
                "); start the run from the environment that the cluster was started from"
            ) from error
        remedy = "try again when this machine is less busy" if address == "local" else _REMEDY
        raise ResourceError(
            f"the Ray cluster at {address!r} does not answer ({error}); {remedy}"
        ) from error
