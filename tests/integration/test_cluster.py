"""Joining a cluster that is not there or is another one; none is started."""

from __future__ import annotations

import socket
import time

import pytest
import ray

from actors.cluster import HeadWatch, ray_cluster, require_answer
from equilibrate.errors import ResourceError

SLOW = Exception("The current node timed out during startup.")
"""As Ray itself says it, and the others."""
OLDER = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.40.0")
REFUSED = ConnectionError("Failed to connect to Ray cluster")


@pytest.mark.parametrize(
    ("address", "raised", "said"),
    [
        ("", SLOW, "does not answer .*when this machine is less busy"),
        ("10.0.0.1:6379", SLOW, "does not answer .*ray start"),
        ("10.0.0.1:6379", OLDER, r"other software .*started with: Ray: 2\.40\.0.*environment"),
        ("10.0.0.1:6379", REFUSED, "not let us in .*RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_a_cluster_that_does_not_start_is_a_resource_error(
    address: str, raised: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise raised

    monkeypatch.setattr("actors.cluster.require_answer", lambda address: None)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ResourceError, match=said), ray_cluster():
        pytest.fail("entered a cluster that is not there")


@pytest.mark.parametrize(
    ("running", "said"),
    [
        (set(), "no Ray cluster runs here"),
        ({"10.0.0.2:1", "10.0.0.1:1"}, r"belongs to 2 .*one of 10\.0\.0\.1:1, 10\.0\.0\.2:1$"),
    ],
)
def test_auto_is_no_guess(running: set[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: running)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ResourceError, match=said), ray_cluster():
        pytest.fail("entered a cluster that was guessed")


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as listening, socket.socket() as silent:
        for one in (listening, silent):
            one.bind(("127.0.0.1", 0))
        listening.listen()
        require_answer(f"127.0.0.1:{listening.getsockname()[1]}")
        require_answer(f"ray://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(ResourceError, match=r"nothing answers at RAY_ADDRESS .*ray start"):
            require_answer(f"127.0.0.1:{silent.getsockname()[1]}")
    require_answer("local")
    require_answer("auto")


def test_a_head_that_stops_listening_is_told_once_and_a_slow_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.cluster.HEAD_CHECK_SECONDS", 0.05)
    monkeypatch.setattr("actors.cluster.HEAD_LOST_SECONDS", 0.5)
    lost: list[str] = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        HeadWatch(address, lost.append)
        stopped = HeadWatch(address, lost.append)
        time.sleep(1.0)  # it accepts nobody, as one that is busy
        assert lost == []
        stopped.stop()
    HeadWatch(address, lost.append)  # no answer from the start: not watched
    time.sleep(2.0)
    assert lost == [address]


def test_a_cluster_that_fails_under_way_is_a_resource_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "get_runtime_context", object)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ResourceError, match=r"failed \(GetTimeoutError: .*goes on"), ray_cluster():
        raise ray.exceptions.GetTimeoutError("no answer")
