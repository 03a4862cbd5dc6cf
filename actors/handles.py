"""Workers in processes of their own, called by methods that mypy and grep can follow.

    rollouts = worker.call("generate", task(RolloutWorker.generate, requests, version))

A worker is made and called by a `Host`, the actor itself. So the error of a constructor arrives as
what it is (Ray keeps only its text), and a worker that hangs can be asked where.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.exceptions import OutOfMemoryError as MachineOutOfMemoryError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from equilibrate.config.base import Phase
from equilibrate.errors import (
    EquilibrateError,
    InputLostError,
    KilledForMemoryError,
    OutOfMemoryError,
    ResourceError,
    WorkerLostError,
    is_out_of_memory,
)
from equilibrate.run.agreement import Agreement
from equilibrate.run.processes import Process, end, last_words, open_stacks, stacks_of, this_process

W = TypeVar("W")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")

REMEDIES: Mapping[Phase, str] = {
    "generate": "rollout.memory_gib or rollout.max_model_len",
    "score": "scoring.max_tokens_per_batch",
    "update": "learner.max_tokens_per_batch, or set learner.activation_checkpointing=true",
}
"""What takes less memory in a phase."""
RAY_MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""How lines begin that Ray writes into the log of a worker."""
ASKING_SECONDS = 10.0
"""Longest wait for what a machine says of a process that hangs or is gone."""


def machine_name() -> str:
    """Of this process: as Ray calls it, and as people do."""
    return f"machine {ray.util.get_node_ip_address()} ({socket.gethostname()})"


class NotStartedError(ResourceError):
    """A constructor raised what is none of our errors; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker runs."""

    node: str
    """As Ray calls the machine among themselves."""
    machine: str
    process: Process


class Host:
    """The actor: holds one worker and calls its methods."""

    def __init__(self) -> None:
        self._worker: Any = None
        self._failure: Exception | None = None
        self._stacks = open_stacks()

    def place(self) -> Place:
        node = ray.get_runtime_context().get_node_id()
        return Place(node=node, machine=machine_name(), process=this_process(self._stacks))

    def start(
        self,
        make: Callable[[], Any],
        environment: Mapping[str, str],
        agreement: Agreement | None = None,
    ) -> None:
        """Make the worker. What goes wrong is raised here and by every later `call`."""
        os.environ.update(environment)
        try:
            if agreement is not None:
                agreement.require(machine_name())
            self._worker = make()
        except EquilibrateError as error:
            self._failure = error
            raise
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            kind = OutOfMemoryError if is_out_of_memory(error) else NotStartedError
            self._failure = kind(f"{type(error).__name__}: {error}")
            raise self._failure from None

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        if self._failure is not None:
            raise self._failure
        try:
            return getattr(self._worker, method)(*arguments, **named)
        except Exception as error:
            if is_out_of_memory(error):
                traceback.print_exc()
                raise OutOfMemoryError(f"{error}") from None
            raise

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A function in this process, before there is a worker."""
        return function(*arguments)


@dataclass(frozen=True, slots=True)
class Task(Generic[W, T]):
    """A method with its arguments, for whichever worker will carry it out."""

    method: Callable[..., T]
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]


def task(
    method: Callable[Concatenate[W, P], T], /, *arguments: P.args, **named: P.kwargs
) -> Task[W, T]:
    """`task(RolloutWorker.generate, requests, version)`; arguments may be object references."""
    return Task(method, arguments, named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """An answer under way."""

    reference: Any
    worker: Worker[Any]
    phase: Phase

    def result(self, *, seconds: float) -> T:
        """Wait for it.

        Raises: the worker's own error; ResourceError if the worker could not be made;
            WorkerLostError if its process is gone, with its last words, or does not answer;
            KilledForMemoryError if Ray ended it for the sake of its machine; InputLostError if what
            it was to read is lost.
        """
        try:
            answer: T = ray.get(self.reference, timeout=max(0.0, seconds))
            return answer
        except RayTaskError as error:
            # An error of Ray's that met a task is of both kinds.
            if isinstance(error, ObjectLostError):
                raise InputLostError(
                    f"what the {self.worker.name} needed for {self.phase!r} is gone with the "
                    "machine that held it"
                ) from error
            raise self._own(error) from None
        except ObjectLostError as error:
            raise WorkerLostError(
                f"the answer of the {self.worker.name} to {self.phase!r} is gone with its machine"
            ) from error
        except GetTimeoutError as error:
            raise WorkerLostError(
                f"the {self.worker.name} did not answer in time during {self.phase!r} "
                f"({seconds:g} s)"
            ) from error
        except MachineOutOfMemoryError as error:
            raise KilledForMemoryError(
                f"the {self.worker.name} was ended during {self.phase!r}: its machine was about to "
                f"run out of memory{self._remedy}, or end what else runs there"
            ) from error
        except RayActorError as error:
            raise WorkerLostError(
                f"the {self.worker.name} died during {self.phase!r}{self.worker.last_words(error)}"
            ) from error

    def _own(self, error: RayTaskError) -> Exception:
        """The error as the worker raised it, with what only the caller knows."""
        cause, name = error.cause, self.worker.name
        if isinstance(cause, NotStartedError):
            return NotStartedError(
                f"the {name} cannot start: {cause}; its log is {self.worker.log()}"
            )
        if isinstance(cause, OutOfMemoryError):
            return OutOfMemoryError(
                f"the {name} ran out of memory in {self.phase!r}{self._remedy}: {cause}"
            )
        return cause if isinstance(cause, EquilibrateError) else error

    @property
    def _remedy(self) -> str:
        return f"; lower {REMEDIES[self.phase]}" if self.phase in REMEDIES else ""


class Worker(Generic[W]):
    """One worker in its process; calls are carried out in their order."""

    def __init__(
        self,
        name: str,
        make: partial[W],
        *,
        options: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        agreement: Agreement | None = None,
    ) -> None:
        """Begin to start it.

        Args:
            name: for messages, as in `rollout worker 1`.
            make: gives the worker, in its process.
            options: of the actor.
            environment: set before `make`; None waits for `start`.
            agreement: what it must find where it runs.
        """
        self.name = name
        self._make = make
        self._agreement = agreement
        # Named as the worker, for those who look at processes.
        host = type(getattr(make.func, "__name__", "Worker"), (Host,), {})
        self._host = ray.remote(host).options(**options).remote()
        self._place = self._host.place.remote()
        self.started: Call[None] | None = None
        self._is_started = False
        if environment is not None:
            self.start(environment)

    def start(self, environment: Mapping[str, str]) -> None:
        reference = self._host.start.remote(self._make, dict(environment), self._agreement)
        self.started = Call(reference=reference, worker=self, phase="start")

    @property
    def is_started(self) -> bool:
        if not self._is_started and self.started is not None:
            done, _ = ray.wait([self.started.reference], timeout=0, fetch_local=False)
            self._is_started = bool(done)
        return self._is_started

    def call(self, phase: Phase, todo: Task[W, T]) -> Call[T]:
        reference = self._host.call.remote(todo.method.__name__, *todo.arguments, **todo.named)
        return Call(reference=reference, worker=self, phase=phase)

    def call_for_two(self, phase: Phase, todo: Task[W, tuple[A, B]]) -> tuple[Call[A], Call[B]]:
        """A call whose two answers stay apart: the second may be read without the first."""
        first, second = self._host.call.options(num_returns=2).remote(
            todo.method.__name__, *todo.arguments, **todo.named
        )
        return (
            Call(reference=first, worker=self, phase=phase),
            Call(reference=second, worker=self, phase=phase),
        )

    def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Call[T]:
        """A function in the worker's process, before `start`."""
        reference = self._host.run.remote(partial(function, *arguments, **named))
        return Call(reference=reference, worker=self, phase="start")

    def kill(self) -> None:
        ray.kill(self._host)
        # Ray asks the process to end, which one that is stopped or deaf would not.
        self._ask(end)

    def stacks(self) -> str:
        """What every thread of its process is doing."""
        return self._ask(stacks_of) or "its process does not answer"

    @property
    def place(self) -> Place | None:
        """None of one that no machine has room for yet, or whose machine is gone before it said."""
        try:
            found: Place = ray.get(self._place, timeout=ASKING_SECONDS)
            return found
        except RayError:
            return None

    def log(self) -> str:
        place = self.place
        return f"{place.process.log} on {place.machine}" if place else "not known"

    def last_words(self, error: RayActorError) -> str:
        """Ray's reason, and the end of the log."""
        # What follows is the same for every death.
        reason = str(error).partition("Worker exit type: ")[2].partition(" Some common causes")[0]
        place, said = self.place, self._ask(last_words)
        if place is not None and said is None and not reason:
            return f" with its {place.machine}, which does not answer"
        lines = (said or "").splitlines()
        tail = "".join(f"\n    {line}" for line in lines if not line.startswith(RAY_MARKS))
        return (f" ({reason.strip()})" if reason else "") + (
            f"; the end of its log:{tail}" if tail else ""
        )

    def _ask(self, question: Callable[[Process], str]) -> str | None:
        """Ask the machine of the process; None if it does not answer."""
        try:
            place = self.place
            if place is None:
                return None
            if place.node == ray.get_runtime_context().get_node_id():
                return question(place.process)
            strategy = NodeAffinitySchedulingStrategy(place.node, soft=False)
            remote = ray.remote(question).options(num_cpus=0, scheduling_strategy=strategy)
            answer: str = ray.get(remote.remote(place.process), timeout=ASKING_SECONDS)
            return answer
        except RayError:
            return None  # first: Ray's timeout is an OSError as well
        except OSError:
            return ""  # the process is gone, not its machine


def write_stacks(workers: Iterable[Worker[Any]], file: Path) -> None:
    """What each worker is doing, one after another."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(f"== {w.name}\n{w.stacks().strip()}" for w in workers) + "\n")


def who_sits_where(workers: Iterable[Worker[Any]]) -> str:
    """For people; empty where all are on one machine."""
    seated: dict[str, list[str]] = {}
    for worker in workers:
        if place := worker.place:
            seated.setdefault(place.machine, []).append(worker.name)
    parts = [f"{machine}: {', '.join(names)}" for machine, names in seated.items()]
    return "; ".join(parts) if len(parts) > 1 else ""


def wait_for_start(
    workers: Sequence[Worker[Any]], ranks: Sequence[Worker[Any]], *, seconds: float
) -> list[Worker[Any]]:
    """Return once all have started, or those that have not when the time is over.

    A death is left to the next call, which may know a remedy.

    Args:
        ranks: of a learner. They wait for each other while they start: where one is gone or finds
            no other, this returns at once, and their next call shows which and why.
    Raises: the error of the first that cannot start.
    """
    deadline = time.monotonic() + seconds
    started = [worker.started for worker in (*workers, *ranks)]
    pending = {call.reference: call for call in started if call is not None}
    while pending:
        left = max(0.0, deadline - time.monotonic())
        done, _ = ray.wait(list(pending), num_returns=1, timeout=left, fetch_local=False)
        if not done:
            return [call.worker for call in pending.values()]
        call = pending.pop(done[0])
        try:
            call.result(seconds=ASKING_SECONDS)
        except (WorkerLostError, NotStartedError) as error:
            if call.worker in ranks:
                return []
            if isinstance(error, NotStartedError):
                raise
    return []
