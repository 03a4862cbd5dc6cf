"""Worker pools on a real cluster with workers that die, hang and answer on demand."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import ray

from actors.cluster import ray_cluster
from actors.placement import Reservation
from actors.pools import RayLearnerGroup, WorkerPool
from equilibrate.errors import ResourceError, WorkerLostError
from equilibrate.run.capacity import Demand

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="test-pools")
    yield
    ray.shutdown()


class Worker:
    """Writes down what it was asked for; dies or hangs where a file tells it to, once."""

    def __init__(self, index: int, folder: str) -> None:
        self.index = index
        self.folder = Path(folder)
        self.level = 0

    def catch_up(self, level: int) -> None:
        self.level = level

    def work(self, share: int) -> tuple[int, int, int]:
        with (self.folder / f"asked-{share}").open("a") as file:
            file.write("x")
        for name, act in (("die", lambda: os._exit(1)), ("hang", lambda: time.sleep(60))):
            order = self.folder / f"{name}-{share}"
            if order.exists():
                order.unlink()
                act()
        return self.index, share, self.level

    def fail(self, share: int) -> None:
        raise ValueError(f"share {share} is wrong")


def make_pool(folder: Path, *, max_restarts: int = 1, timeout_seconds: float = 30.0) -> WorkerPool:
    remote = ray.remote(Worker).options(num_cpus=0.1)
    return WorkerPool(
        "test",
        lambda index: remote.remote(index, str(folder)),
        num_workers=2,
        timeout_seconds=timeout_seconds,
        max_restarts=max_restarts,
    )


def times_asked(folder: Path) -> list[int]:
    return [len((folder / f"asked-{share}").read_text()) for share in (10, 11)]


def test_answers_come_in_the_order_of_shares(tmp_path: Path) -> None:
    assert make_pool(tmp_path).map("work", [(10,), (11,)]) == [(0, 10, 0), (1, 11, 0)]


def test_dead_worker_is_replaced_caught_up_and_only_its_share_done_again(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    (tmp_path / "die-11").touch()
    answers = pool.map("work", [(10,), (11,)], prepare=("catch_up", 7))
    assert answers == [(0, 10, 0), (1, 11, 7)]
    assert times_asked(tmp_path) == [1, 2]


def test_one_loss_under_two_maps_costs_one_restart(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, max_restarts=1)
    (tmp_path / "die-11").touch()
    begun = [
        pool.start("work", shares, ("catch_up", 7)) for shares in ([(10,), (11,)], [(12,), (13,)])
    ]
    assert begun[0]() == [(0, 10, 0), (1, 11, 7)]
    assert begun[1]() == [(0, 12, 0), (1, 13, 7)]


def test_hanging_worker_is_replaced_after_the_deadline(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, timeout_seconds=8.0)
    pool.map("work", [(0,), (1,)])
    (tmp_path / "hang-11").touch()
    assert pool.map("work", [(10,), (11,)]) == [(0, 10, 0), (1, 11, 0)]
    assert times_asked(tmp_path) == [1, 2]


def test_no_restart_left_is_a_resource_error(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, max_restarts=0)
    (tmp_path / "die-10").touch()
    with pytest.raises(ResourceError, match="test worker 0 died and no restart is left"):
        pool.map("work", [(10,), (11,)])


def test_error_of_the_method_comes_through(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share 10 is wrong"):
        make_pool(tmp_path).map("fail", [(10,)])


class Rank:
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def save(self, folder: str) -> None:
        if (Path(folder) / f"die-{self.rank}").exists():
            os._exit(1)
        # The others wait for the lost rank, as in a collective.
        time.sleep(60 if list(Path(folder).glob("die-*")) else 0)
        (Path(folder) / f"saved-{self.rank}").touch()


def test_one_lost_rank_is_seen_at_once_and_the_group_restarts(tmp_path: Path) -> None:
    remote = ray.remote(Rank).options(num_cpus=0.1)
    group = RayLearnerGroup(
        lambda: [remote.remote(rank) for rank in range(2)], timeout_seconds=50.0
    )
    group.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"saved-0", "saved-1"}
    (tmp_path / "die-1").touch()
    start = time.monotonic()
    with pytest.raises(WorkerLostError):
        group.save(tmp_path)
    assert time.monotonic() - start < 40
    (tmp_path / "die-1").unlink()
    group.restart()
    group.save(tmp_path)


def demand(name: str, num_workers: int, cpus: float, gpus: float = 0.0) -> Demand:
    return Demand(name=name, num_workers=num_workers, cpus=cpus, gpus=gpus)


def test_busy_cluster_is_a_resource_error_after_the_deadline() -> None:
    first = Reservation([demand("a", 1, 1.5)], timeout_seconds=30)
    try:
        with pytest.raises(ResourceError, match="large enough but not free"):
            Reservation([demand("b", 1, 1.5)], timeout_seconds=1)
    finally:
        first.release()


@pytest.mark.parametrize(
    ("address", "remedy"), [("", "when this machine is less busy"), ("10.0.0.1:6379", "ray start")]
)
def test_a_cluster_that_does_not_start_is_a_resource_error(
    address: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray itself does

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ResourceError, match=remedy), ray_cluster():
        pytest.fail("entered a cluster that is not there")
