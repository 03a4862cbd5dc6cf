"""Worker pools on a real cluster with workers that die, hang and answer on demand."""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.handles import Task, Worker, task, wait_for_start
from actors.meeting import open_meeting
from actors.placement import Reservation
from actors.pools import RayLearnerGroup, Watch, WorkerPool
from equilibrate.config.base import WorkerGroup
from equilibrate.errors import DataError, OutOfMemoryError, ResourceError, WorkerLostError
from equilibrate.run.agreement import Agreement
from equilibrate.run.capacity import Demand
from equilibrate.types import UpdateMetrics

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="test-pools")
    yield
    ray.shutdown()


WORKERS: list[Worker[Any]] = []
"""Those of one test."""


@pytest.fixture(autouse=True)
def no_worker_outlives_its_test():
    # An error that pytest keeps would keep them, and the CPU that they hold, for longer.
    yield
    for worker in WORKERS:
        worker.kill()
    WORKERS.clear()


def make_worker(name: str, make: partial[Any], **more: Any) -> Worker[Any]:
    WORKERS.append(Worker(name, make, options={"num_cpus": 0.1}, **more))
    return WORKERS[-1]


class Sleeper:
    """Writes down what it was asked for; dies or hangs where a file tells it to, once."""

    def __init__(self, index: int, folder: str) -> None:
        self.index = index
        self.folder = Path(folder)
        self.level = 0
        if self.obeys("die-at-start"):
            print("the wheels came off", file=sys.stderr, flush=True)
            os._exit(7)
        if (self.folder / "bad-data").exists():
            raise DataError("folder/score.json: missing")
        if (self.folder / "odd").exists():
            raise ValueError("odd engine")

    def obeys(self, name: str) -> bool:
        order = self.folder / name
        if exists := order.exists():
            order.unlink()
        return exists

    def catch_up(self, level: int) -> None:
        self.level = level

    def work(self, share: int) -> tuple[int, int, int]:
        with (self.folder / f"asked-{share}").open("a") as file:
            file.write("x")
        if self.obeys(f"die-{share}"):
            os._exit(1)
        if self.obeys(f"hang-{share}"):
            time.sleep(60)
        return self.index, share, self.level

    def fail(self, share: int) -> None:
        raise ValueError(f"share {share} is wrong")

    def need_memory(self) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 17 bytes")


def make_pool(
    folder: Path, *, max_restarts: int = 1, timeout_seconds: float = 30.0
) -> WorkerPool[Sleeper]:
    return WorkerPool(
        lambda index: make_worker(
            f"test worker {index}", partial(Sleeper, index, str(folder)), environment={}
        ),
        num_workers=2,
        watch=Watch(
            # Processes start slowly where all cores are busy.
            seconds=lambda phase: 100.0 if phase == "start" else timeout_seconds,
            folder=folder,
        ),
        max_restarts=max_restarts,
    )


def works(*shares: int) -> list[Task[Sleeper, tuple[int, int, int]]]:
    return [task(Sleeper.work, share) for share in shares]


CATCH_UP = task(Sleeper.catch_up, 7)


def times_asked(folder: Path) -> list[int]:
    return [len((folder / f"asked-{share}").read_text()) for share in (10, 11)]


def test_answers_come_in_the_order_of_shares(tmp_path: Path) -> None:
    assert make_pool(tmp_path).map("score", works(10, 11)) == [(0, 10, 0), (1, 11, 0)]


def test_dead_worker_is_replaced_caught_up_and_only_its_share_done_again(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    (tmp_path / "die-11").touch()
    answers = pool.map("score", works(10, 11), prepare=CATCH_UP)
    assert answers == [(0, 10, 0), (1, 11, 7)]
    assert times_asked(tmp_path) == [1, 2]


def test_one_loss_under_two_maps_costs_one_restart(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, max_restarts=1)
    (tmp_path / "die-11").touch()
    begun = [pool.start("score", works(*shares), CATCH_UP) for shares in ((10, 11), (12, 13))]
    assert begun[0]() == [(0, 10, 0), (1, 11, 7)]
    assert begun[1]() == [(0, 12, 0), (1, 13, 7)]


def test_hanging_worker_is_replaced_after_the_deadline_and_says_where_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(tmp_path, timeout_seconds=8.0)
    assert not wait_for_start(pool.workers, [], seconds=100.0)
    (tmp_path / "hang-11").touch()
    assert pool.map("score", works(10, 11)) == [(0, 10, 0), (1, 11, 0)]
    assert times_asked(tmp_path) == [1, 2]
    assert "test worker 1 did not answer in time: 'score' may take 8 s" in caplog.text
    stacks = (tmp_path / "stacks-score-0.txt").read_text()
    assert "in work" in stacks
    assert "State:" in stacks


def test_no_restart_left_is_a_resource_error(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, max_restarts=0)
    (tmp_path / "die-10").touch()
    with pytest.raises(ResourceError, match=r"test worker 0 died(.|\n)*no restart is left"):
        pool.map("score", works(10, 11))


def test_error_of_the_method_comes_through(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share 10 is wrong"):
        make_pool(tmp_path).map("score", [task(Sleeper.fail, 10)])


def test_the_error_of_a_constructor_ends_all_at_once_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "bad-data").touch()
    pool = make_pool(tmp_path, max_restarts=3)
    with pytest.raises(DataError, match=r"^folder/score.json: missing$"):
        wait_for_start(pool.workers, [], seconds=100.0)
    with pytest.raises(DataError, match=r"^folder/score.json: missing$"):
        pool.map("score", works(10, 11))
    assert pool.restarts_left == 3


def test_any_other_error_of_a_constructor_is_a_resource_error_with_its_text(tmp_path: Path) -> None:
    (tmp_path / "odd").touch()
    pool = make_pool(tmp_path, max_restarts=3)
    with pytest.raises(ResourceError, match=r"test worker \d cannot start: ValueError: odd engine"):
        pool.map("score", works(10, 11))
    assert pool.restarts_left == 3


def test_a_death_at_the_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "die-at-start").touch()
    pool = make_pool(tmp_path, max_restarts=0)
    with pytest.raises(ResourceError, match=r"died during (.|\n)*the wheels came off"):
        pool.map("score", works(10, 11))


def test_memory_that_a_worker_does_not_get_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"'score'; lower scoring.max_tokens.*17 bytes"):
        make_pool(tmp_path).map("score", [task(Sleeper.need_memory)])


class Rank:
    """A rank of a learner; files tell it what becomes of it."""

    def __init__(self, rank: int, max_tokens: int, folder: str) -> None:
        self.rank = rank
        self.max_tokens = max_tokens
        self.folder = Path(folder)
        if (self.folder / "bad-start").exists():
            # The others wait for it, as where a process group is made.
            time.sleep(60 * (rank == 0))
            if (self.folder / "bad-start").read_text() == "dies":
                os._exit(7)
            raise ValueError("odd engine")

    def save(self, folder: str) -> None:
        if (Path(folder) / f"die-{self.rank}").exists():
            os._exit(1)
        # The others wait for the lost rank, as in a collective.
        time.sleep(60 if list(Path(folder).glob("die-*")) else 0)
        (Path(folder) / f"saved-{self.rank}").touch()

    def export(self, folder: str, *, averaged: bool = False) -> None:
        """A collective that breaks before Ray knows why, or for a reason of its own."""
        if self.rank == 1 and (self.folder / "die-late").exists():
            time.sleep(3)
            os._exit(1)
        raise RuntimeError("Connection closed by peer")

    def update(self, *_: object, **__: object) -> UpdateMetrics:
        if self.max_tokens > int((self.folder / "memory").read_text()):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 17 bytes")
        return UpdateMetrics(values={"num_tokens": float(self.max_tokens)})


def make_group(folder: Path) -> RayLearnerGroup:
    def make_ranks(divisor: int) -> list[Worker[Any]]:
        return [
            make_worker(
                f"learner worker {rank}",
                partial(Rank, rank, 8 // divisor, str(folder)),
                environment={},
            )
            for rank in range(2)
        ]

    watch = Watch(seconds=lambda phase: 50.0, folder=folder)
    return RayLearnerGroup(make_ranks, watch=watch, max_restarts=1)


def test_one_lost_rank_is_seen_at_once_and_the_group_restarts(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    group.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"saved-0", "saved-1"}
    (tmp_path / "die-1").touch()
    start = time.monotonic()
    with pytest.raises(WorkerLostError, match="learner worker 1 died during 'save'"):
        group.save(tmp_path)
    assert time.monotonic() - start < 40
    (tmp_path / "die-1").unlink()
    group.restart()
    group.save(tmp_path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("dies", "learner worker 1 died during 'save'"),
        ("raises", "learner worker 1 cannot start: ValueError: odd engine"),
    ],
)
def test_a_rank_that_cannot_start_is_seen_while_the_others_wait_for_it(
    what: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.pools.LOSS_SECONDS", 3.0)
    (tmp_path / "bad-start").write_text(what)
    group, start = make_group(tmp_path), time.monotonic()
    assert wait_for_start([], group.ranks, seconds=50.0) == []
    with pytest.raises(ResourceError, match=message):
        group.save(tmp_path)
    assert time.monotonic() - start < 40


def test_a_loss_that_shows_first_as_a_broken_collective_is_a_loss(tmp_path: Path) -> None:
    (tmp_path / "die-late").touch()
    with pytest.raises(WorkerLostError, match="learner worker 1 died during 'export'"):
        make_group(tmp_path).export(tmp_path)


def test_an_error_of_a_rank_without_a_loss_comes_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        make_group(tmp_path).export(tmp_path)


def test_an_update_without_memory_is_tried_once_more_with_half_the_pass(tmp_path: Path) -> None:
    group, memory = make_group(tmp_path), tmp_path / "memory"
    update = partial(group.update, [], iteration=0, multiplier=0.0, kl_coef=0.0)
    memory.write_text("4")
    with pytest.raises(WorkerLostError, match="half the tokens"):
        update()
    group.restart()
    assert update().values == {"num_tokens": 4.0}
    memory.write_text("2")
    with pytest.raises(OutOfMemoryError, match=r"lower learner.max_tokens_per_batch.*17 bytes"):
        update()


class Meeter:
    """Joins a group as the ranks of the learner do."""

    def __init__(self) -> None:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        self.rank = dist.get_rank()

    def ranks(self) -> list[int]:
        import torch.distributed as dist

        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, self.rank)
        return gathered


def test_rank_0_keeps_the_port_where_the_ranks_meet() -> None:
    ranks = [make_worker(f"rank {n}", partial(Meeter)) for n in range(2)]
    meeting = ranks[0].run(open_meeting).result(seconds=100.0)
    # It is taken from now on: nobody else can have it before the ranks meet there.
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((meeting.address, meeting.port))
    for number, rank in enumerate(ranks):
        rank.start(meeting.environment(rank=number, world_size=2))
    calls = [rank.call("update", task(Meeter.ranks)) for rank in ranks]
    assert [call.result(seconds=100.0) for call in calls] == [[0, 1], [0, 1]]


def test_busy_cluster_is_a_resource_error_after_the_deadline() -> None:
    most = WorkerGroup(cpus=1.5)
    first = Reservation([Demand.of("a", most)], timeout_seconds=30)
    try:
        with pytest.raises(
            ResourceError, match=r"large enough but not free: .* 0\.5 CPU of the 1\.5"
        ):
            Reservation([Demand.of("b", most)], timeout_seconds=1)
    finally:
        first.release()


def test_ranks_on_one_machine_are_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    demands = [
        Demand.of("sampling", WorkerGroup(num_workers=2, cpus=0.1)),
        Demand.of("learner", WorkerGroup(num_workers=4, cpus=0.1)),
    ]
    reservation = Reservation(demands, timeout_seconds=30)
    try:
        assert list(reservation.bundles("sampling")) == [0, 1]
        assert reservation.bundles_by_node("learner") == [2, 3, 4, 5]
        nodes = dict(enumerate("xyabab"))
        monkeypatch.setattr(reservation, "_node_of_bundle", lambda: nodes)
        assert reservation.bundles_by_node("learner") == [2, 4, 3, 5]
    finally:
        reservation.release()


def test_a_worker_without_the_drivers_folder_does_not_start(tmp_path: Path) -> None:
    agreement = replace(Agreement.write(tmp_path), nonce="another")
    make = partial(Sleeper, 0, str(tmp_path))
    worker = make_worker("test worker 0", make, environment={}, agreement=agreement)
    with pytest.raises(ResourceError, match=r"machine [\d.]+ \(.*\) does not share the run's"):
        wait_for_start([worker], [], seconds=100.0)
