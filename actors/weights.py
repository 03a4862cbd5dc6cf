"""One version of the policy on its way from the learner to the generators.

The learner packs its tensors into a few flat buckets for Ray's object store; a generator reads them
there without a copy and loads them through vLLM's weight-transfer API, by an engine registered
here. Of a policy with an adapter the adapter alone travels: what lies below it every generator has
in its own model folder.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from equilibrate.config.training import AdapterConfig
from equilibrate.errors import NumericsError
from equilibrate.models.device import Accelerator, Dtype
from equilibrate.models.lora import with_adapter
from equilibrate.models.names import folder_aliases, folder_tensors

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

OBJECT_STORE = "equilibrate_object_store"
"""Name of our engine in vLLM's registry."""
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
    slots: tuple[TensorSlot, ...]
    digests: tuple[bytes, ...]
    """One a bucket: over its bytes, its place, and all else that is said here."""
    adapter: AdapterConfig | None = None
    """Where these are the parts of one, by the model's own names, to be added to the weights of the
    generator's model folder."""

    @property
    def num_bytes(self) -> int:
        return sum(bucket.nbytes for bucket in self.buckets)


def pack_weights(
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    aliases: Mapping[str, str],
    bucket_bytes: int = BUCKET_BYTES,
) -> PackedWeights:
    """Copy tensors, as they come, into flat buckets.

    Args:
        named_tensors: `folder_tensors(model, ...)`, as the generator's folder names them; each
            needs to be whole only while it is handed over, so that a sharded learner can gather
            one at a time.
        aliases: `folder_aliases(model)`. A tied head must be sent under its own name, or vLLM on
            CPU keeps sampling from its packed copy of the old one; it costs no bytes.
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


def pack_adapter(
    parts: Iterable[tuple[str, Tensor]],
    adapter: AdapterConfig,
    *,
    bucket_bytes: int = BUCKET_BYTES,
) -> PackedWeights:
    """Its parts by the model's own names. Raises: NumericsError as `pack_weights`."""
    packer = _Packer(bucket_bytes)
    for name, tensor in parts:
        _require_finite(name, tensor)
        packer.add((name,), tensor.detach())
    return packer.finish(adapter)


def pack_model(model: Any) -> PackedWeights:
    """All parameters of a whole model, as its generators' folder names them."""
    return pack_weights(
        folder_tensors(model, model.named_parameters()), aliases=folder_aliases(model)
    )


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

    def finish(self, adapter: AdapterConfig | None = None) -> PackedWeights:
        self._close()
        buckets, slots = tuple(self._buckets), tuple(self._slots)
        digests = _digests(buckets, slots, adapter)
        return PackedWeights(buckets=buckets, slots=slots, digests=digests, adapter=adapter)


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


def tensors_for(
    model: torch.nn.Module,
    weights: PackedWeights,
    read_base: Callable[[], Any],
    accelerator: Accelerator,
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a whole version, without the second names of tensors for which this
    model has no module: vLLM's Gemma 2 has no `lm_head` beside its embeddings, and refuses one by
    that name.

    Args:
        read_base: `read_policy` of the generator's folder, to which an adapter is added. Asked in
            the midst of an update: vLLM changes transformers' classes of the kinds that it has no
            own class for, and outside of one these cannot be made any more.
        accelerator: on which that is done, of the run's dtype.
    """
    if weights.adapter is None:
        named, second = unpack_weights(weights), _second_names(weights)
    else:
        base = read_base()
        aliases = folder_aliases(base)
        parts = dict(unpack_weights(weights))
        own = with_adapter(base.named_parameters(), parts, weights.adapter, accelerator)
        named, second = _with_aliases(folder_tensors(base, own), aliases), set(aliases)
    modules = {name for name, _ in model.named_children()}
    for name, tensor in named:
        if name not in second or name.partition(".")[0] in modules:
            yield name, tensor


def _second_names(weights: PackedWeights) -> set[str]:
    filled = [slot for slot in weights.slots if math.prod(slot.shape)]
    first: dict[tuple[int, int], str] = {}
    for slot in filled:
        first.setdefault((slot.bucket, slot.offset), slot.name)
    return {slot.name for slot in filled} - set(first.values())


def _with_aliases(
    named: Iterable[tuple[str, Tensor]], aliases: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in named:
        yield name, tensor
        yield from ((alias, tensor) for alias, first in aliases.items() if first == name)


def load_version(
    model: Any, config: Any, weights: PackedWeights, read_base: Callable[[], Any]
) -> None:
    """What our engine does in the midst of an update.

    Args: model, config: vLLM's; read_base: as of `tensors_for`.
    """
    from vllm.platforms import current_platform

    dtype = cast("Dtype", str(config.dtype).removeprefix("torch."))
    accelerator = Accelerator(current_platform.device_type, dtype)
    model.load_weights(tensors_for(model, weights, read_base, accelerator))


def verify_weights(weights: PackedWeights, expected_shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse damaged or incomplete weights before an update starts.

    vLLM itself only warns about a tensor that never came, and goes on with the old values.

    Raises: NumericsError that names what is damaged, missing, unknown or misshapen.
    """
    found = _digests(weights.buckets, weights.slots, weights.adapter)
    for index, (bucket, digest) in enumerate(zip(weights.buckets, found, strict=True)):
        if weights.digests[index : index + 1] != (digest,):
            raise NumericsError(
                f"weights: bucket {index + 1} of {len(weights.buckets)} ({bucket.nbytes} bytes) or "
                "the list of its tensors does not match the checksum it was sent with; send this "
                "version again"
            )
    shapes = {slot.name: slot.shape for slot in weights.slots}
    if missing := sorted(expected_shapes.keys() - shapes.keys()):
        raise NumericsError(
            f"weights: {len(missing)} of {len(expected_shapes)} tensors were not sent, "
            f"{missing[0]} first; send every parameter of the model folder, and a tied head under "
            "its own name, or every part of an adapter"
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
        load: Callable[[Any, Any], None]

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
            update_info.load(self.model, self.model_config)

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            self.is_open = False

        def shutdown(self) -> None:
            pass

    WeightTransferEngineFactory.register_engine(OBJECT_STORE, ObjectStoreEngine)
    return OBJECT_STORE


def _require_finite(name: str, tensor: Tensor) -> None:
    # One nan or inf makes the sum non-finite, and float64 cannot overflow on sums of narrower
    # floats: exact, without a mask the size of the tensor.
    if not bool(tensor.detach().sum(dtype=torch.float64).isfinite()):
        raise NumericsError(
            f"weights: {name} holds a non-finite number; the generators keep the version they have"
        )


def _digests(
    buckets: Sequence[NDArray[np.uint8]],
    slots: Sequence[TensorSlot],
    adapter: AdapterConfig | None,
) -> tuple[bytes, ...]:
    """xxh3 of 128 bits: nobody forges weights between our own processes, and it runs at the speed
    of memory, 14 times that of blake2b."""
    table = repr(([astuple(slot) for slot in slots], adapter)).encode()
    digests = []
    for index, bucket in enumerate(buckets):
        digest = xxhash.xxh3_128(b"%d of %d " % (index, len(buckets)) + table)
        digest.update(bucket.data)
        digests.append(digest.digest())
    return tuple(digests)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
