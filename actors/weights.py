"""One version of the policy on its way from the learner to the generators.

On CPU the learner packs its tensors into a few flat buckets for Ray's object store; a generator
reads them there without a copy and loads them through vLLM's weight-transfer API, by an engine
registered here. On CUDA vLLM's own `nccl` engine moves the tensors, and only the wiring is ours.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from equilibrate.errors import DataError, NumericsError

if TYPE_CHECKING:
    from torch import Tensor
    from vllm.distributed.weight_transfer.base import TrainerWeightTransferEngine, WeightSource

logger = logging.getLogger(__name__)

OBJECT_STORE = "equilibrate_object_store"
"""Name of our engine in vLLM's registry."""
HEAD_NAME = "lm_head.weight"
ALIGNMENT = 64
"""Bytes; lets every tensor be viewed in place, whatever its dtype."""
BUCKET_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlot:
    """Where one tensor lies in the buckets."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bucket: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """All tensors of one version; the arrays travel out of band and arrive read-only."""

    buckets: tuple[NDArray[np.uint8], ...]
    checksums: tuple[int, ...]
    slots: tuple[TensorSlot, ...]

    @property
    def num_bytes(self) -> int:
        return sum(bucket.nbytes for bucket in self.buckets)


def tied_names(model: torch.nn.Module) -> dict[str, str]:
    """Second names of shared parameters, each with the name that `named_parameters` gives it."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            aliases[name] = known
    return aliases


def pack_weights(
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    aliases: Mapping[str, str],
    bucket_bytes: int = BUCKET_BYTES,
) -> PackedWeights:
    """Copy tensors, as they come, into flat buckets.

    Args:
        named_tensors: Hugging Face names; each tensor needs to be whole only while it is handed
            over, so that a sharded learner can gather one at a time.
        aliases: `tied_names(model)`. A tied head must be sent under its own name, or vLLM on CPU
            keeps sampling from its packed copy of the old one; it costs no bytes.
    Raises: NumericsError naming the first tensor with a non-finite entry.
    """
    packer = _Packer(bucket_bytes)
    second_names: dict[str, list[str]] = {}
    for alias, name in aliases.items():
        second_names.setdefault(name, []).append(alias)
    for name, tensor in named_tensors:
        if name in aliases:
            continue
        _require_finite(name, tensor)
        packer.add((name, *second_names.get(name, ())), tensor.detach())
    return packer.finish()


class _Packer:
    """Fills one bucket after the other."""

    def __init__(self, bucket_bytes: int) -> None:
        self._bucket_bytes = bucket_bytes
        self._buckets: list[NDArray[np.uint8]] = []
        self._slots: list[TensorSlot] = []
        self._used = 0

    def add(self, names: Sequence[str], tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if not self._buckets or self._used + size > self._buckets[-1].nbytes:
            self._close()
            # Zeroed memory is mapped page by page: a large bucket with little in it costs little.
            self._buckets.append(np.zeros(_aligned(max(self._bucket_bytes, size)), np.uint8))
            self._used = 0
        region = torch.from_numpy(self._buckets[-1][self._used : self._used + size])
        region.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        dtype = str(tensor.dtype).removeprefix("torch.")
        place = {"bucket": len(self._buckets) - 1, "offset": self._used}
        self._slots.extend(
            TensorSlot(name=name, dtype=dtype, shape=tuple(tensor.shape), **place) for name in names
        )
        self._used += _aligned(size)

    def _close(self) -> None:
        if self._buckets:
            self._buckets[-1] = self._buckets[-1][: self._used]

    def finish(self) -> PackedWeights:
        self._close()
        return PackedWeights(
            buckets=tuple(self._buckets),
            checksums=tuple(_checksum(bucket) for bucket in self._buckets),
            slots=tuple(self._slots),
        )


def unpack_weights(weights: PackedWeights) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors in the order of packing; views, not to be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        buckets = [torch.from_numpy(bucket) for bucket in weights.buckets]
    for slot in weights.slots:
        dtype: torch.dtype = getattr(torch, slot.dtype)
        size = math.prod(slot.shape) * dtype.itemsize
        region = buckets[slot.bucket][slot.offset : slot.offset + size]
        yield slot.name, region.view(dtype).view(slot.shape)


def verify_weights(weights: PackedWeights, expected_shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse damaged or incomplete weights before an update starts.

    vLLM itself only warns about a tensor that never came, and goes on with the old values.

    Raises: NumericsError that names what is damaged, missing, unknown or misshapen.
    """
    for index, (bucket, checksum) in enumerate(
        zip(weights.buckets, weights.checksums, strict=True)
    ):
        if bucket.nbytes % 8 or _checksum(bucket) != checksum:
            raise NumericsError(
                f"weights: bucket {index + 1} of {len(weights.buckets)} ({bucket.nbytes} bytes) "
                "does not match the checksum it was sent with; send this version again"
            )
    shapes = {slot.name: slot.shape for slot in weights.slots}
    if missing := sorted(expected_shapes.keys() - shapes.keys()):
        raise NumericsError(
            f"weights: {len(missing)} of {len(expected_shapes)} tensors were not sent, "
            f"{missing[0]} first; send every parameter of the model folder, and a tied head under "
            "its own name"
        )
    if unknown := sorted(shapes.keys() - expected_shapes.keys()):
        raise NumericsError(
            f"weights: {unknown[0]} is not a tensor of the generator's model folder"
        )
    for name, shape in expected_shapes.items():
        if shapes[name] != tuple(shape):
            raise NumericsError(
                f"weights: {name} has shape {shapes[name]}, the generator's model folder has "
                f"{tuple(shape)}"
            )


def folder_shapes(model_folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that an update of this Hugging Face folder must contain."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(model_folder).glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    if not shapes:
        raise DataError(
            f"{model_folder} holds no *.safetensors file; save the model with save_pretrained"
        )
    config = json.loads((Path(model_folder) / "config.json").read_text())
    if config.get("tie_word_embeddings"):
        shapes[HEAD_NAME] = (config["vocab_size"], config["hidden_size"])
    return shapes


class SyncOutcome(StrEnum):
    """How a sync came through."""

    FIRST_TRY = "first_try"
    RETRIED = "retried"
    REBUILT = "rebuilt"


def update_with_repair(update: Callable[[], None], rebuild: Callable[[], None]) -> SyncOutcome:
    """Try a whole update; once more if it breaks off half-way; then once more on a fresh engine.

    Raises: whatever the last attempt raises; the engine is then not usable.
    """
    try:
        update()
        return SyncOutcome.FIRST_TRY
    except Exception:
        logger.warning("weight update broke off; sending all of it again", exc_info=True)
    try:
        update()
        return SyncOutcome.RETRIED
    except Exception:
        logger.warning("weight update broke off again; building the engine anew", exc_info=True)
    rebuild()
    update()
    return SyncOutcome.REBUILT


@cache
def register_object_store_engine() -> str:
    """Make `OBJECT_STORE` known to vLLM in this process, and return that name."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        weights: PackedWeights

    class ObjectStoreEngine(WeightTransferEngine[WeightTransferInitInfo, UpdateInfo]):
        init_info_cls = WeightTransferInitInfo
        update_info_cls = UpdateInfo
        is_open = False

        def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
            pass

        def start_weight_update(self) -> None:
            if self.is_open:
                # An update that broke off leaves layers with some of their tensors. vLLM would
                # count these as received this time too, and finish such a layer with a hole in it.
                finalize_layerwise_reload(self.model, self.model_config)
            self.is_open = True
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            # The base class synchronises an accelerator afterwards; there is none here.
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: UpdateInfo) -> None:
            self.model.load_weights(unpack_weights(update_info.weights))

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            self.is_open = False

        def shutdown(self) -> None:
            pass

    WeightTransferEngineFactory.register_engine(OBJECT_STORE, ObjectStoreEngine)
    return OBJECT_STORE


class RayTransferClient:
    """Lets vLLM's trainer-side engine drive the rollout actors, with a deadline on every call.

    `version` is stamped on the generators by the next `finish_weight_update`.
    """

    def __init__(self, workers: Sequence[Any], timeout_seconds: float) -> None:
        self._workers = list(workers)
        self._timeout_seconds = timeout_seconds
        self.version = ""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._call("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._call("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update", weight_version or self.version)

    def shutdown_weight_transfer_engine(self) -> None:
        self._call("shutdown_weight_transfer_engine")

    def _call(self, method: str, *arguments: object) -> None:
        import ray

        calls = [worker.transfer_call.remote(method, *arguments) for worker in self._workers]
        ray.get(calls, timeout=self._timeout_seconds)


def open_nccl_sender(
    source: WeightSource,
    client: RayTransferClient,
    *,
    num_workers: int,
    rank: int,
    master_address: str,
    master_port: int,
) -> TrainerWeightTransferEngine[Any]:
    """Join every learner rank to vLLM's built-in `nccl` transfer. CUDA only: written to the
    sources of vLLM 0.32 and never run.

    Learner rank 0 is NCCL rank 0 and the generators follow, one GPU each. After setting
    `client.version`, all ranks call `send_weights()` on the result, which gathers, broadcasts and
    finishes. If that raises, the NCCL group is spent: restart the generators, open a new sender.

    Args:
        source: `vllm.distributed.weight_transfer.base.ModuleSource(model)`, or one that gathers
            ZeRO-3 shards.
        master_address, master_port: where rank 0 opens the rendezvous, reachable from all others.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    init_info = NCCLTrainerInitInfo(
        master_address=master_address,
        master_port=master_port,
        world_size=1 + num_workers,
        rank=rank,
    )
    return WeightTransferTrainerFactory.trainer_init(init_info, client=client, source=source)


def _require_finite(name: str, tensor: Tensor) -> None:
    # One nan or inf makes the sum non-finite, and float64 cannot overflow on sums of narrower
    # floats: exact, without a mask the size of the tensor.
    if not bool(tensor.detach().sum(dtype=torch.float64).isfinite()):
        raise NumericsError(
            f"weights: {name} holds a non-finite number; the generators keep the version they have"
        )


def _checksum(bucket: NDArray[np.uint8]) -> int:
    # The sum of 8-byte words, modulo 2^64: runs at memory speed and catches a changed or lost word.
    return int(bucket.view(np.uint64).sum(dtype=np.uint64))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
