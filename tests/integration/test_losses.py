"""What becomes of a worker's loss or error, with stand-ins for processes: nothing is started."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ObjectLostError, RayTaskError
from ray.exceptions import OutOfMemoryError as MachineOutOfMemoryError

from actors.handles import Call, NotStartedError, Task, task, wait_for_start
from actors.pools import RayLearnerGroup, Watch, WorkerPool
from equilibrate.errors import (
    InputLostError,
    KilledForMemoryError,
    OutOfMemoryError,
    ResourceError,
    WorkerLostError,
)

WATCH = Watch(seconds=lambda phase: 1.0, folder=Path("first"))


class FakeWorker:
    """Answers as it is told, by the name of the method; None never answers."""

    is_started = True
    place: object | None = "here"

    def stacks(self) -> str:
        return ""

    def __init__(self, name: str = "worker", **answers: Any) -> None:
        self.name = name
        self.answers = answers
        self.started = self.answer("start", answers.get("start"))

    def answer(self, phase: Any, value: Any) -> Any:
        worker: Any = self
        return FakeCall(reference=Reference(value), worker=worker, phase=phase)

    def call(self, phase: Any, todo: Task[Any, Any]) -> Any:
        return self.answer(phase, self.answers[todo.method.__name__])

    def kill(self) -> None:
        pass


class FakeCall(Call[Any]):
    def result(self, *, seconds: float) -> Any:
        value = self.reference.value
        if isinstance(value, Exception):
            raise value
        return value


class Reference:
    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(references: list[Reference], **_: Any) -> tuple[list[Reference], list[Reference]]:
        return [one for one in references if one.value is not None][:1], []

    monkeypatch.setattr("ray.wait", wait)
    monkeypatch.setattr("ray.put", lambda value: value)


@pytest.mark.parametrize("error", [WorkerLostError("died"), NotStartedError("no such library")])
def test_a_rank_that_cannot_start_ends_the_wait_for_those_that_wait_for_it(
    error: Exception,
) -> None:
    ranks: Any = [FakeWorker("rank 0"), FakeWorker("rank 1", start=error, save=error)]
    assert wait_for_start([], ranks, seconds=1.0) == []
    assert wait_for_start([], ranks[:1], seconds=1.0) == ranks[:1]
    with pytest.raises(NotStartedError, match="no such library"):
        wait_for_start([FakeWorker(start=NotStartedError("no such library"))], [], seconds=1.0)


def sync() -> None: ...


def generate() -> None: ...


def update() -> None: ...


def generators(*, max_restarts: int) -> WorkerPool[Any]:
    """One generator; the first is lost, and the second cannot be brought up to date."""
    workers: list[Any] = [
        FakeWorker(generate=WorkerLostError("died")),
        FakeWorker(sync=WorkerLostError("not loaded"), generate=ResourceError("sync it first")),
        FakeWorker(sync=1, generate="answer"),
    ]
    return WorkerPool(
        lambda index: workers.pop(0), num_workers=1, watch=WATCH, max_restarts=max_restarts
    )


def test_a_replacement_that_cannot_catch_up_is_a_loss_itself() -> None:
    pool = generators(max_restarts=2)
    assert pool.map("generate", [task(generate)], prepare=task(sync)) == ["answer"]
    assert pool.restarts_left == 0
    with pytest.raises(ResourceError, match=r"not loaded\nno restart is left"):
        generators(max_restarts=1).map("generate", [task(generate)], prepare=task(sync))


def test_what_no_worker_could_read_is_left_to_the_caller() -> None:
    """The learner publishes its weights again; another generator would not find them either."""
    workers: list[Any] = [
        FakeWorker(generate=WorkerLostError("died")),
        FakeWorker(sync=InputLostError("gone"), generate=ResourceError("sync it first")),
    ]
    pool: WorkerPool[Any] = WorkerPool(
        lambda index: workers.pop(0), num_workers=1, watch=WATCH, max_restarts=5
    )
    with pytest.raises(InputLostError):
        pool.map("generate", [task(generate)], prepare=task(sync))
    assert pool.restarts_left == 4


LOST = ObjectLostError("ab", None, "")


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (LOST, WorkerLostError, "the answer of the rollout worker 1 to 'sync' is gone"),
        (
            RayTaskError("update_weights", "", LOST).as_instanceof_cause(),
            InputLostError,
            "what the rollout worker 1 needed for 'sync' is gone",
        ),
    ],
)
def test_what_is_lost_with_a_machine_is_an_answer_or_an_input(
    raised: Exception, expected: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("ray.get", get)
    worker: Any = FakeWorker("rollout worker 1")
    with pytest.raises(WorkerLostError, match=said) as caught:
        Call(reference=None, worker=worker, phase="sync").result(seconds=1.0)
    assert type(caught.value) is expected


def learner(
    divisors: list[int], *, max_restarts: int, error: type[ResourceError] = OutOfMemoryError
) -> RayLearnerGroup:
    def make(divisor: int) -> Any:
        divisors.append(divisor)
        return [FakeWorker(update=error("17 bytes"), save=None)]

    return RayLearnerGroup(make, watch=WATCH, max_restarts=max_restarts)


@pytest.mark.parametrize("phase", ["update", "score"])
def test_a_worker_that_ray_ends_for_its_machine_is_a_loss(
    monkeypatch: pytest.MonkeyPatch, phase: Any
) -> None:
    """Not a fault of the cluster: in a run of hours a generator is replaced, passes are halved."""

    def get(*_: Any, **__: Any) -> None:
        raise MachineOutOfMemoryError("1 worker(s) were killed due to the node running low")

    monkeypatch.setattr("ray.get", get)
    worker: Any = FakeWorker("learner worker 0")
    with pytest.raises(KilledForMemoryError) as caught:
        Call(reference=None, worker=worker, phase=phase).result(seconds=1.0)
    key = {"update": "learner", "score": "scoring"}[phase]
    assert str(caught.value).startswith(
        f"the learner worker 0 was ended during {phase!r}: its machine was about to run out of "
        f"memory; lower {key}.max_tokens_per_batch"
    )
    assert isinstance(caught.value, WorkerLostError)


@pytest.mark.parametrize("error", [OutOfMemoryError, KilledForMemoryError])
def test_halved_passes_and_the_folder_of_a_run_end_with_it(
    error: type[ResourceError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = []
    monkeypatch.setattr("actors.pools.write_stacks", lambda group, file: written.append(file))
    divisors: list[int] = []
    group = learner(divisors, max_restarts=1, error=error)
    learn = partial(group.update, [], iteration=0, multiplier=0.0, kl_coef=0.0)
    second = Watch(seconds=lambda phase: 2.0, folder=tmp_path)
    for _ in range(2):
        with pytest.raises(WorkerLostError, match="half the tokens"):
            learn()
        group.restart()
        group.renew(second, max_restarts=1)
    assert divisors == [1, 2, 1, 2, 1]
    with pytest.raises(WorkerLostError, match=r"'save' may take 2 s"):
        group.save(tmp_path)
    assert [file.parent for file in written] == [tmp_path]


def test_a_worker_for_which_no_machine_has_room_is_not_called_slow(tmp_path: Path) -> None:
    watch = Watch(seconds=lambda phase: 45.0 if phase == "start" else 2.0, folder=tmp_path)
    workers: list[Any] = [FakeWorker("rollout worker 0"), FakeWorker("rollout worker 1")]
    assert "may take 2 s" in str(watch.overdue("generate", workers, workers))
    workers[1].place = None
    said = str(watch.overdue("generate", workers, workers))
    assert "no machine of the cluster had room for the rollout worker 1 in 2 s and 45 s to" in said


def test_nothing_is_promised_where_no_restart_is_left() -> None:
    group = learner([], max_restarts=1)
    learn = partial(group.update, [], iteration=0, multiplier=0.0, kl_coef=0.0)
    group.restart()
    with pytest.raises(OutOfMemoryError, match=r"^17 bytes$"):
        learn()
