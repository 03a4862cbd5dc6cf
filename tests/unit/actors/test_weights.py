"""Packing, checking and the repair policy; none of it needs Ray or vLLM."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.weights import (
    ALIGNMENT,
    PackedWeights,
    SyncOutcome,
    pack_adapter,
    pack_weights,
    tensors_for,
    unpack_weights,
    update_with_repair,
    verify_weights,
)
from equilibrate.config.training import AdapterConfig
from equilibrate.errors import NumericsError
from equilibrate.models.device import Accelerator

CPU = Accelerator("cpu", "float32")
EMBED = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def tensors() -> dict[str, torch.Tensor]:
    return {
        EMBED: torch.arange(6, dtype=torch.float32).view(3, 2),
        "norm": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
        "scale": torch.tensor(0.25),
    }


def shapes(weights: PackedWeights) -> dict[str, tuple[int, ...]]:
    return {slot.name: slot.shape for slot in weights.slots}


@pytest.mark.parametrize("bucket_bytes", [1, ALIGNMENT, 2 * ALIGNMENT, 10**6])
def test_round_trip_keeps_names_order_dtypes_and_values(bucket_bytes: int) -> None:
    packed = pack_weights(tensors().items(), aliases={}, bucket_bytes=bucket_bytes)
    unpacked = dict(unpack_weights(packed))
    assert list(unpacked) == list(tensors())
    for name, tensor in tensors().items():
        assert unpacked[name].dtype == tensor.dtype
        assert torch.equal(unpacked[name], tensor)


def test_bucket_sizes_by_hand() -> None:
    # 24, 6 and 4 bytes, each rounded up to 64: two fit into 128, the third opens a second bucket.
    packed = pack_weights(tensors().items(), aliases={}, bucket_bytes=128)
    assert [bucket.nbytes for bucket in packed.buckets] == [128, 64]
    assert [(slot.bucket, slot.offset) for slot in packed.slots] == [(0, 0), (0, 64), (1, 0)]
    assert packed.num_bytes == 192


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 300))
def test_any_sizes_survive_any_bucket_size(sizes: list[int], bucket_bytes: int) -> None:
    named = [(f"t{index}", torch.rand(size)) for index, size in enumerate(sizes)]
    packed = pack_weights(named, aliases={}, bucket_bytes=bucket_bytes)
    verify_weights(packed, {name: tuple(tensor.shape) for name, tensor in named})
    for (name, tensor), (other_name, other) in zip(named, unpack_weights(packed), strict=True):
        assert name == other_name
        assert torch.equal(tensor, other)


def test_a_strided_tensor_is_packed_by_value() -> None:
    packed = pack_weights([("t", torch.arange(6.0).view(2, 3).T)], aliases={})
    assert dict(unpack_weights(packed))["t"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_a_tied_head_is_sent_under_both_names_and_costs_nothing() -> None:
    plain = pack_weights(tensors().items(), aliases={})
    tied = pack_weights(tensors().items(), aliases={HEAD: EMBED})
    unpacked = dict(unpack_weights(tied))
    assert torch.equal(unpacked[HEAD], unpacked[EMBED])
    assert tied.num_bytes == plain.num_bytes


def test_a_model_without_a_head_of_its_own_is_sent_none() -> None:
    tied = pack_weights({"empty": torch.zeros(0), **tensors()}.items(), aliases={HEAD: EMBED})
    model = torch.nn.ModuleDict({"model": torch.nn.Linear(1, 1), "lm_head": torch.nn.Linear(1, 1)})
    assert [name for name, _ in tensors_for(model, tied, dict, CPU)] == [*shapes(tied)]
    del model["lm_head"]
    assert [name for name, _ in tensors_for(model, tied, dict, CPU)] == ["empty", *tensors()]


def test_an_alias_in_the_stream_is_not_sent_twice() -> None:
    named = {**tensors(), HEAD: tensors()[EMBED]}
    packed = pack_weights(named.items(), aliases={HEAD: EMBED})
    assert sorted(name for name, _ in unpack_weights(packed)) == sorted(named)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_non_finite_tensor_is_refused_by_name(bad: float, dtype: torch.dtype) -> None:
    tensor = torch.ones(100, dtype=dtype)
    tensor[57] = bad
    with pytest.raises(NumericsError, match=r"layers\.0\.q"):
        pack_weights([("ok", torch.ones(2)), ("layers.0.q", tensor)], aliases={})


def test_inf_and_minus_inf_do_not_cancel() -> None:
    with pytest.raises(NumericsError):
        pack_weights([("t", torch.tensor([float("inf"), float("-inf")]))], aliases={})


def test_the_largest_finite_numbers_are_allowed() -> None:
    # Their sum overflows float32, but not the float64 that the check adds in.
    largest = torch.full((64,), torch.finfo(torch.float32).max)
    assert torch.equal(
        dict(unpack_weights(pack_weights([("t", largest)], aliases={})))["t"], largest
    )


@pytest.mark.parametrize("position", [0, 7, 63])
def test_one_flipped_bit_is_noticed(position: int) -> None:
    packed = pack_weights(tensors().items(), aliases={})
    packed.buckets[0][position] ^= 1
    with pytest.raises(NumericsError, match="bucket 1 of 1"):
        verify_weights(packed, shapes(packed))


def test_a_cut_bucket_is_noticed() -> None:
    packed = pack_weights(tensors().items(), aliases={})
    for length in (8, 63):
        cut = dataclasses.replace(packed, buckets=(packed.buckets[0][:length],))
        with pytest.raises(NumericsError, match="checksum"):
            verify_weights(cut, shapes(packed))


def damaged(packed: PackedWeights, fault: str) -> PackedWeights:
    """Each of these leaves the sum of all 8-byte words as it was."""
    bucket, slots = packed.buckets[0].copy(), list(packed.slots)
    words = bucket.view(np.uint64)
    if fault == "two words swapped":
        words[[0, 1]] = words[[1, 0]]
    elif fault == "offset shifted":
        slots[0] = dataclasses.replace(slots[0], offset=slots[0].offset + 8)
    elif fault == "dtype of the same size":
        slots[1] = dataclasses.replace(slots[1], dtype="float16")
    elif fault == "shape of the same size":
        slots[0] = dataclasses.replace(slots[0], shape=(1, 6))
    elif fault == "names exchanged":
        slots[:2] = [
            dataclasses.replace(one, name=other.name)
            for one, other in zip(slots[:2], slots[1::-1], strict=True)
        ]
    elif fault == "bucket sent twice":
        return dataclasses.replace(packed, buckets=(packed.buckets[0],) * 2)
    return dataclasses.replace(packed, buckets=(bucket, *packed.buckets[1:]), slots=tuple(slots))


@pytest.mark.parametrize(
    "fault",
    [
        "two words swapped",
        "offset shifted",
        "dtype of the same size",
        "shape of the same size",
        "names exchanged",
        "bucket sent twice",
    ],
)
def test_damage_that_a_sum_would_not_see_is_noticed(fault: str) -> None:
    packed = pack_weights(tensors().items(), aliases={})
    expected = {name: tuple(tensor.shape) for name, tensor in tensors().items()}
    verify_weights(packed, expected)
    with pytest.raises(NumericsError, match="checksum"):
        verify_weights(damaged(packed, fault), expected)


def test_buckets_in_another_order_are_noticed() -> None:
    packed = pack_weights([("a", torch.ones(4)), ("b", torch.zeros(4))], aliases={}, bucket_bytes=1)
    swapped = dataclasses.replace(
        packed, buckets=packed.buckets[::-1], digests=packed.digests[::-1]
    )
    with pytest.raises(NumericsError, match="bucket 1 of 2"):
        verify_weights(swapped, {"a": (4,), "b": (4,)})


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({EMBED: (3, 2), "norm": (3,), "scale": (), HEAD: (3, 2)}, "lm_head.weight first"),
        ({EMBED: (3, 2), "norm": (3,)}, "scale is not"),
        ({EMBED: (2, 3), "norm": (3,), "scale": ()}, r"shape \(3, 2\)"),
    ],
)
def test_incomplete_unknown_and_misshapen_tensors_are_named(
    expected: dict[str, tuple[int, ...]], message: str
) -> None:
    packed = pack_weights(tensors().items(), aliases={})
    with pytest.raises(NumericsError, match=message):
        verify_weights(packed, expected)


def test_an_adapter_says_how_it_is_added_and_no_one_can_change_it() -> None:
    parts = {"q.lora_A": torch.ones(2, 4), "q.lora_B": torch.zeros(3, 2)}
    packed = pack_adapter(parts.items(), AdapterConfig(rank=2, alpha=4))
    expected = shapes(packed)
    verify_weights(packed, expected)
    for other in (AdapterConfig(rank=2, alpha=8), None):
        with pytest.raises(NumericsError, match="checksum"):
            verify_weights(dataclasses.replace(packed, adapter=other), expected)
    half = pack_adapter([("q.lora_A", torch.ones(2, 4))], AdapterConfig(rank=2))
    with pytest.raises(NumericsError, match=r"q\.lora_B first.*every part of an adapter"):
        verify_weights(half, expected)
    with pytest.raises(NumericsError, match=r"q\.lora_B holds a non-finite"):
        pack_adapter([("q.lora_B", torch.tensor(torch.nan))], AdapterConfig())


def test_buckets_travel_out_of_band_and_are_read_in_place() -> None:
    packed = pack_weights(tensors().items(), aliases={})
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    assert [buffer.raw().nbytes for buffer in buffers] == [packed.num_bytes]
    # As from the object store: read-only memory that nobody copies.
    received = pickle.loads(stream, buffers=[bytes(buffer.raw()) for buffer in buffers])
    assert not received.buckets[0].flags.writeable
    name, tensor = next(unpack_weights(received))
    assert name == EMBED
    assert tensor.data_ptr() == received.buckets[0].ctypes.data
    assert np.array_equal(tensor.numpy(), tensors()[EMBED].numpy())


class Engine:
    """Fails its first updates, and logs what was asked of it."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls: list[str] = []

    def update(self) -> None:
        self.calls.append("update")
        if self.failures:
            self.failures -= 1
            raise RuntimeError("half-way")

    def rebuild(self) -> None:
        self.calls.append("rebuild")


@pytest.mark.parametrize(
    ("failures", "outcome", "calls"),
    [
        (0, SyncOutcome.FIRST_TRY, ["update"]),
        (1, SyncOutcome.RETRIED, ["update", "update"]),
        (2, SyncOutcome.REBUILT, ["update", "update", "rebuild", "update"]),
    ],
)
def test_repair_retries_once_then_rebuilds(
    failures: int, outcome: SyncOutcome, calls: list[str]
) -> None:
    engine = Engine(failures)
    assert update_with_repair(engine.update, engine.rebuild) is outcome
    assert engine.calls == calls


def test_repair_gives_up_after_a_failure_on_a_fresh_engine() -> None:
    engine = Engine(failures=3)
    with pytest.raises(RuntimeError, match="half-way"):
        update_with_repair(engine.update, engine.rebuild)
    assert engine.calls == ["update", "update", "rebuild", "update"]
