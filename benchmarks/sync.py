"""A weight sync against one memory copy of the same bytes.

Ours is the whole path of one version: pack the policy's tensors, put the buckets into Ray's object
store, and load them into the vLLM engine of a rollout actor, which answers when it can sample from
them. The copy is what no transport of whole weights can avoid; of an adapter, which travels alone,
the engine still loads what it is merged into.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness import (
    Quartiles,
    Result,
    RoofWatch,
    make_parser,
    measure_pairs,
    publish,
    settings_of,
)
from benchmarks.limits import shape_of, sync_seconds

TIMEOUT_SECONDS = 300.0


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="", help="model folder; default untrained built-in")
    parser.add_argument("--adapter-rank", type=int, default=0, help="0: all weights travel")
    parser.add_argument(
        "--iteration-seconds", type=float, help="of a training, to state the share of a sync"
    )
    arguments = parser.parse_args(argv)
    publish(measure(arguments), arguments.json)


def measure(arguments: argparse.Namespace) -> Result:
    import ray
    import torch

    from benchmarks.workloads import write_models

    torch.set_num_threads(arguments.threads)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        with TemporaryDirectory() as folder:
            model = arguments.model or write_models(Path(folder)).policy
            path = SyncPath(model, arguments.threads, arguments.adapter_rank)
            return _measure_path(path, model, arguments)
    finally:
        ray.shutdown()


def _measure_path(path: SyncPath, model: str, arguments: argparse.Namespace) -> Result:
    shape = shape_of(model)
    source = np.ones(int(shape.num_bytes), np.uint8)
    target = np.zeros_like(source)
    watch = RoofWatch(shape.gemm_shapes(64))
    pairs = measure_pairs(
        path.sync,
        lambda _: np.copyto(target, source),
        repeats=arguments.repeats,
        warmups=arguments.warmups,
    )
    roof, about_roof = watch.finish()
    limit, seconds = sync_seconds(source.nbytes, roof), Quartiles.of(pairs.ours)
    phases = np.median(path.phases[-arguments.repeats :], axis=0).tolist()
    details: dict[str, Any] = {
        "seconds": seconds.median,
        "copy_seconds": Quartiles.of(pairs.reference).median,
        "limit_seconds": limit,
        "num_bytes": path.num_bytes,
        "phase_seconds": dict(zip(("pack", "put", "load"), phases, strict=True)),
        "roof": about_roof,
    }
    if arguments.iteration_seconds:
        details["share_of_iteration"] = seconds.median / arguments.iteration_seconds
    return Result(
        name="sync",
        ratio=Quartiles.of(pairs.ratios),
        reference="one memory copy of all weights",
        limit_fraction=limit / seconds.median,
        config=settings_of(arguments) | {"num_parameters": shape.num_parameters},
        details=details,
    )


class SyncPath:
    """A policy here, an engine in an actor, and the way between them."""

    def __init__(self, model: str, threads: int, adapter_rank: int = 0) -> None:
        import ray

        from actors.rollout import RolloutWorker, engine_environment
        from equilibrate.config.training import AdapterConfig
        from equilibrate.models.device import Accelerator
        from equilibrate.models.loading import load_policy
        from equilibrate.models.lora import adapt

        accelerator = Accelerator("cpu", "float32")
        policy = load_policy(model, accelerator)
        self._adapter = AdapterConfig(rank=adapter_rank) if adapter_rank else None
        if self._adapter is not None:
            adapt(policy, self._adapter, accelerator, seed=0)
        self._policy = policy.model
        environment = engine_environment(device="cpu", threads=threads)
        self._worker = (
            ray.remote(RolloutWorker)
            .options(num_cpus=1, runtime_env={"env_vars": environment})
            .remote(
                model_folder=model,
                dtype="float32",
                temperature=1.0,
                max_new_tokens=32,
                max_model_len=96,
                kv_cache_gib=0.125,
                enforce_eager=True,
            )
        )
        self.num_bytes = self._packed().num_bytes
        self.phases: list[tuple[float, float, float]] = []
        """Seconds of packing, putting and loading, of each sync."""
        self.sync(-1)

    def _packed(self) -> Any:
        from actors.weights import pack_adapter, pack_model

        if self._adapter is None:
            return pack_model(self._policy)
        named = self._policy.named_parameters()
        trained = ((name, parameter) for name, parameter in named if parameter.requires_grad)
        return pack_adapter(trained, self._adapter)

    def sync(self, number: int) -> None:
        import ray

        start = time.perf_counter()
        packed = self._packed()
        has_packed = time.perf_counter()
        reference = ray.put(packed)
        has_put = time.perf_counter()
        call = self._worker.update_weights.remote(reference, number + 1)
        ray.get(call, timeout=TIMEOUT_SECONDS)
        has_loaded = time.perf_counter()
        self.phases.append((has_packed - start, has_put - has_packed, has_loaded - has_put))


if __name__ == "__main__":
    main()
