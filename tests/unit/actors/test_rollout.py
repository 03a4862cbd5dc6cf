"""The parts of the generator that need no engine."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from actors.rollout import RolloutWorker, engine_environment
from equilibrate.errors import WorkerLostError
from equilibrate.seeds import request_seed


def test_seed_is_the_same_in_every_process() -> None:
    # A literal, because a hash that changed would make old runs impossible to repeat.
    assert request_seed(0, 0, "p", 0) == 1900329930060920198


def test_seed_differs_in_each_argument_and_does_not_run_them_together() -> None:
    keys = [
        (0, 0, "p", 0),
        (1, 0, "p", 0),
        (0, 1, "p", 0),
        (0, 0, "q", 0),
        (0, 0, "p", 1),
        (1, 1, "p", 1),
        (11, 0, "p", 1),
    ]
    assert len({request_seed(*key) for key in keys}) == len(keys)


def test_seed_fits_a_signed_64_bit_integer() -> None:
    seeds = [request_seed(0, iteration, "p", 0) for iteration in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Uniform: the mean of 1000 draws lies within 5 standard errors, 5 x 0.29 / sqrt(1000) = 0.046.
    assert abs(sum(seeds) / len(seeds) / 2**63 - 0.5) < 0.046


def test_engine_runs_in_the_process_of_its_actor() -> None:
    for device in ("cpu", "cuda"):
        environment = engine_environment(device=device, threads=2)
        assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert environment["OMP_NUM_THREADS"] == "2"
    assert "TORCH_COMPILE_DISABLE" not in engine_environment(device="cuda", threads=2)


def test_importing_the_actors_loads_no_engine() -> None:
    heavy = "{'ray', 'vllm', 'deepspeed'}"
    check = f"import sys, actors.rollout, actors.weights; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OutOfMemoryError("CUDA out of memory"), OutOfMemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError),
        (MemoryError(), MemoryError),
        (RuntimeError("engine core died"), WorkerLostError),
    ],
)
def test_memory_that_the_engine_does_not_get_is_no_loss(
    error: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss would be replaced, and the next engine would get as little."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("actors.rollout.verify_weights", lambda *_: None)
    worker = object.__new__(RolloutWorker)
    worker._read_base = lambda: None
    worker._llm = SimpleNamespace(generate=fail, start_weight_update=fail)
    monkeypatch.setattr(worker, "_expected_shapes", lambda _: {})
    monkeypatch.setattr(worker, "rebuild", lambda: None)
    weights: Any = SimpleNamespace(adapter=None)
    for call in (lambda: worker._run([[5]], []), lambda: worker.update_weights(weights, 1)):
        with pytest.raises(raised) as caught:
            call()
        assert caught.type is raised
