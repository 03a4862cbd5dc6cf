"""The generator against the real vLLM on CPU, judged by a plain float32 forward in transformers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import actors.weights
from actors.rollout import UNSYNCED, RolloutWorker, engine_environment
from actors.weights import PackedWeights, SyncOutcome, pack_adapter, pack_model, pack_weights
from equilibrate.config.training import AdapterConfig
from equilibrate.errors import DataError, NumericsError, ParityError, WorkerLostError
from equilibrate.models.device import Accelerator
from equilibrate.models.lora import adapt, is_adapter, merged_weights
from equilibrate.models.names import folder_aliases
from equilibrate.models.policy import PolicyModel
from equilibrate.seeds import request_seed
from equilibrate.types import Category, FinishReason, Rollout, RolloutRequest
from tests.integration.conftest import EOS_ID

# vLLM and torch's own deprecations, raised where they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TEMPERATURE = 0.7
MAX_NEW_TOKENS = 24
PARITY_NATS = 1e-5
ENGINE = {
    "dtype": "float32",
    "temperature": TEMPERATURE,
    "max_new_tokens": MAX_NEW_TOKENS,
    "max_model_len": 64,
    "kv_cache_gib": 0.125,
    "enforce_eager": True,
}


def requests(num_prompts: int = 6, copies: int = 2, iteration: int = 0) -> list[RolloutRequest]:
    lengths = np.random.default_rng(0).integers(2, 12, num_prompts)
    return [
        RolloutRequest(
            prompt_id=f"p{index}",
            copy=copy,
            category=Category.GENERAL,
            token_ids=(1, *range(4 + index, 4 + index + int(length))),
            seed=request_seed(0, iteration, f"p{index}", copy),
        )
        for index, length in enumerate(lengths)
        for copy in range(copies)
    ]


def pack(model: LlamaForCausalLM) -> PackedWeights:
    return pack_model(model)


def reference_log_probs(
    model: LlamaForCausalLM, token_ids: Any, temperature: float
) -> torch.Tensor:
    """[L], nats; 0 on the first token."""
    ids = torch.tensor(token_ids)
    with torch.no_grad():
        log_probs = (model(ids[None]).logits[0] / temperature).log_softmax(-1)
    return torch.cat([torch.zeros(1), log_probs[:-1].gather(1, ids[1:, None]).squeeze(1)])


def parity_gap(rollouts: list[Rollout], model: LlamaForCausalLM) -> float:
    gaps = []
    for rollout in rollouts:
        reference = reference_log_probs(model, rollout.token_ids, TEMPERATURE).numpy()
        gaps.append(np.abs(rollout.rollout_log_probs - reference)[rollout.response_mask].max())
    return float(max(gaps))


class Pair:
    """A generator and the learner's model, kept at the same version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worker = RolloutWorker(model_folder=str(folder), **ENGINE)
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.version = UNSYNCED

    def perturb(self) -> None:
        """Every parameter moves by noise of 0.02, from the same start each time."""
        torch.manual_seed(self.version + 2)
        start = LlamaForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), start.parameters(), strict=True):
                parameter.copy_(value + 0.02 * torch.randn_like(value))

    def sync(self) -> SyncOutcome:
        self.version += 1
        return self.worker.update_weights(pack(self.model), self.version)

    def gap(self) -> float:
        return parity_gap(self.worker.generate(requests(), self.version), self.model)


@pytest.fixture(scope="module", params=["tied_llama", "untied_llama"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(request.getfixturevalue(request.param))
    yield pair
    pair.worker._llm.llm_engine.engine_core.shutdown()
    gc.collect()


@pytest.fixture
def synced(pair: Pair) -> Pair:
    pair.sync()
    return pair


def test_more_prompts_than_a_step_reads_are_answered_as_few_are(synced: Pair) -> None:
    """150 prompts of 36 to 40 tokens; a step of vLLM reads 4,096 on a CPU, and cuts the next."""
    many = [
        RolloutRequest(
            prompt_id=f"long{index}",
            copy=0,
            category=Category.GENERAL,
            token_ids=(1, *(4 + (index + place) % 20 for place in range(35 + index % 5))),
            seed=request_seed(0, 0, f"long{index}", 0),
        )
        for index in range(150)
    ]
    together = synced.worker.generate(many, synced.version)
    few = synced.worker.generate(many[100:110], synced.version)
    for one, other in zip(together[100:110], few, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()


@pytest.fixture
def break_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The next updates raise after so many tensors; later ones are whole again."""

    def break_next(num_tensors: int, num_updates: int, source: str = "unpack_weights") -> None:
        remaining = [num_updates]
        tensors = getattr(actors.weights, source)

        def breaking(*arguments: Any) -> Iterator[tuple[str, torch.Tensor]]:
            is_broken = remaining[0] > 0
            remaining[0] -= 1
            for index, item in enumerate(tensors(*arguments)):
                if is_broken and index == num_tensors:
                    raise ConnectionError("transport cut")
                yield item

        monkeypatch.setattr(actors.weights, source, breaking)

    return break_next


def test_a_fresh_engine_serves_no_version(tied_llama: Path, pair: Pair) -> None:
    if pair.version == UNSYNCED:
        assert pair.worker.weight_version() == UNSYNCED
        with pytest.raises(ParityError, match=r"version -1.*policy version 0"):
            pair.worker.generate(requests(), 0)


def test_rollouts_are_complete(synced: Pair) -> None:
    asked = requests()
    rollouts = synced.worker.generate(asked, synced.version)
    assert [(r.prompt_id, r.copy) for r in rollouts] == [(r.prompt_id, r.copy) for r in asked]
    for request, rollout in zip(asked, rollouts, strict=True):
        num_prompt_tokens = len(request.token_ids)
        assert tuple(rollout.token_ids[:num_prompt_tokens]) == request.token_ids
        response = rollout.token_ids[num_prompt_tokens:]
        assert rollout.response_mask.tolist() == [False] * num_prompt_tokens + [True] * len(
            response
        )
        assert (rollout.rollout_log_probs[:num_prompt_tokens] == 0).all()
        assert rollout.policy_version == synced.version
        assert 0 < len(response) <= MAX_NEW_TOKENS
        if rollout.finish_reason is FinishReason.STOP:
            assert response[-1] == EOS_ID
            assert EOS_ID not in response[:-1]
        else:
            assert len(response) == MAX_NEW_TOKENS
            assert EOS_ID not in response


def test_both_ways_to_finish_occur(synced: Pair) -> None:
    rollouts = synced.worker.generate(requests(num_prompts=20, copies=4), synced.version)
    assert {rollout.finish_reason for rollout in rollouts} == set(FinishReason)


def test_log_probs_equal_a_float32_forward_at_the_same_temperature(synced: Pair) -> None:
    rollouts = synced.worker.generate(requests(), synced.version)
    assert parity_gap(rollouts, synced.model) <= PARITY_NATS
    # At temperature 1 the same tokens have other log-probs: the test above cannot pass by accident.
    rollout = rollouts[0]
    raw = reference_log_probs(synced.model, rollout.token_ids, 1.0).numpy()
    assert np.abs(rollout.rollout_log_probs - raw)[rollout.response_mask].max() > 0.01


def test_parity_after_every_weight_moved(synced: Pair) -> None:
    before = synced.worker.generate(requests(), synced.version)
    synced.perturb()
    assert parity_gap(before, synced.model) > 0.01
    assert synced.sync() is SyncOutcome.FIRST_TRY
    assert synced.worker.weight_version() == synced.version
    assert synced.gap() <= PARITY_NATS


def test_without_the_tied_head_in_the_update_the_old_head_stays(
    synced: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases = folder_aliases(synced.model)
    synced.perturb()
    synced.version += 1
    headless = pack_weights(synced.model.named_parameters(), aliases={})
    if not aliases:
        assert synced.worker.update_weights(headless, synced.version) is SyncOutcome.FIRST_TRY
        return
    with pytest.raises(NumericsError, match=r"lm_head\.weight first"):
        synced.worker.update_weights(headless, synced.version)
    # Past the check, vLLM takes the update without an error and samples from the old head.
    monkeypatch.setattr("actors.rollout.verify_weights", lambda *_: None)
    assert synced.worker.update_weights(headless, synced.version) is SyncOutcome.FIRST_TRY
    assert synced.gap() > 0.01
    assert synced.sync() is SyncOutcome.FIRST_TRY
    assert synced.gap() <= PARITY_NATS


def test_another_version_is_refused_and_both_are_named(synced: Pair) -> None:
    with pytest.raises(ParityError, match=rf"version {synced.version}, but policy version 999"):
        synced.worker.generate(requests(), 999)


def test_same_seed_gives_the_same_response_alone_and_in_another_batch(synced: Pair) -> None:
    asked = requests()
    together = synced.worker.generate(asked, synced.version)
    backwards = synced.worker.generate([*requests(iteration=7), *reversed(asked)], synced.version)[
        len(asked) :
    ]
    for request, first, second in zip(asked, together, reversed(backwards), strict=True):
        (alone,) = synced.worker.generate([request], synced.version)
        for other in (second, alone):
            assert other.token_ids.tolist() == first.token_ids.tolist()
            assert other.rollout_log_probs == pytest.approx(
                first.rollout_log_probs, abs=PARITY_NATS
            )


def test_copies_and_iterations_differ(synced: Pair) -> None:
    first, second = synced.worker.generate(requests(num_prompts=1), synced.version)
    assert first.token_ids.tolist() != second.token_ids.tolist()
    later, _ = synced.worker.generate(requests(num_prompts=1, iteration=1), synced.version)
    assert later.token_ids.tolist() != first.token_ids.tolist()


def test_prompts_without_room_are_refused_by_name(synced: Pair) -> None:
    for length in (0, 64, 100):
        request = RolloutRequest(
            prompt_id="bad", copy=0, category=Category.GENERAL, token_ids=(5,) * length, seed=1
        )
        with pytest.raises(DataError, match=rf"'bad' \({length} tokens\)"):
            synced.worker.generate([*requests(), request], synced.version)
    assert synced.gap() <= PARITY_NATS


def test_nan_logits_are_refused_by_name(synced: Pair) -> None:
    with torch.no_grad():
        synced.model.model.norm.weight[0] = float("nan")
    with pytest.raises(NumericsError, match=r"model\.norm\.weight"):
        synced.sync()
    assert synced.worker.weight_version() == synced.version - 1
    engine_model = synced.worker._llm.llm_engine.model_executor.driver_worker.model_runner.model
    with torch.no_grad():
        engine_model.model.norm.weight[0] = float("nan")
    synced.version -= 1
    with pytest.raises(NumericsError, match=r"prompt 'p0', copy 0"):
        synced.worker.generate(requests(), synced.version)
    synced.perturb()
    synced.sync()
    assert synced.gap() <= PARITY_NATS


def test_damaged_weights_never_start_an_update(synced: Pair) -> None:
    weights = pack(synced.model)
    weights.buckets[0][100] ^= 1
    with pytest.raises(NumericsError, match="bucket 1"):
        synced.worker.update_weights(weights, synced.version + 1)
    assert synced.gap() <= PARITY_NATS


def test_an_update_cut_at_any_tensor_is_repaired_by_a_whole_one(
    synced: Pair, break_after: Callable[[int, int], None]
) -> None:
    for cut in range(len(pack(synced.model).slots)):
        synced.perturb()
        break_after(cut, 1)
        assert synced.sync() is SyncOutcome.RETRIED
        assert synced.gap() <= PARITY_NATS, f"cut after {cut} tensors"


def test_an_adapter_cut_at_any_tensor_is_repaired_and_no_part_of_one_is_taken(
    synced: Pair, break_after: Callable[..., None]
) -> None:
    settings = AdapterConfig(rank=4, alpha=8)
    start = LlamaForCausalLM.from_pretrained(synced.folder, dtype=torch.float32)
    held = PolicyModel(start, Accelerator("cpu", "float32"))
    adapt(held, settings, Accelerator("cpu", "float32"), seed=0)
    parts = {name: part for name, part in start.named_parameters() if is_adapter(name)}
    with pytest.raises(NumericsError, match="were not sent"):
        synced.worker.update_weights(pack_adapter(list(parts.items())[1:], settings), 1)
    num_tensors = len(list(merged_weights(start)))
    for cut in range(num_tensors):
        with torch.no_grad():
            for part in parts.values():
                part.copy_(0.1 * torch.randn_like(part))
        break_after(cut, 2 if cut == num_tensors - 1 else 1, "with_adapter")
        synced.version += 1
        outcome = synced.worker.update_weights(
            pack_adapter(parts.items(), settings), synced.version
        )
        # The last cut comes twice: a fresh engine reads its folder anew.
        assert outcome is (SyncOutcome.REBUILT if cut == num_tensors - 1 else SyncOutcome.RETRIED)
        rollouts = synced.worker.generate(requests(), synced.version)
        assert parity_gap(rollouts, start) <= PARITY_NATS, f"cut after {cut} tensors"


def test_a_tainted_engine_generates_nothing(
    synced: Pair, break_after: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(3, 2)
    monkeypatch.setattr(synced.worker, "rebuild", _no_spare)
    with pytest.raises(WorkerLostError, match="no spare"):
        synced.sync()
    with pytest.raises(ParityError, match="broken-off"):
        synced.worker.generate(requests(), synced.version - 1)
    synced.sync()
    assert synced.gap() <= PARITY_NATS


def _no_spare() -> None:
    raise RuntimeError("no spare")


def test_an_update_cut_twice_is_repaired_by_a_fresh_engine(
    synced: Pair, break_after: Callable[[int, int], None]
) -> None:
    old_engine = id(synced.worker._llm)
    synced.perturb()
    break_after(5, 2)
    assert synced.sync() is SyncOutcome.REBUILT
    assert id(synced.worker._llm) != old_engine
    assert synced.worker.weight_version() == synced.version
    assert synced.gap() <= PARITY_NATS


def test_a_rebuilt_engine_serves_no_version_until_it_is_synced(synced: Pair) -> None:
    synced.worker.rebuild()
    assert synced.worker.weight_version() == UNSYNCED
    with pytest.raises(ParityError):
        synced.worker.generate(requests(), synced.version)
    synced.sync()
    assert synced.gap() <= PARITY_NATS


def test_in_a_ray_actor_with_weights_from_the_object_store(tied_llama: Path) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        namespace="test_rollout",
        log_to_driver=False,
    )
    try:
        environment = engine_environment(device="cpu", threads=1)
        actor = (
            ray.remote(RolloutWorker)
            .options(num_cpus=1, runtime_env={"env_vars": environment})
            .remote(model_folder=str(tied_llama), **ENGINE)
        )
        model = LlamaForCausalLM.from_pretrained(tied_llama, dtype=torch.float32)
        reference = ray.put(pack(model))
        assert (
            ray.get(actor.update_weights.remote(reference, 4), timeout=120) is SyncOutcome.FIRST_TRY
        )
        rollouts = ray.get(actor.generate.remote(requests(), 4), timeout=120)
        assert parity_gap(rollouts, model) <= PARITY_NATS
        with pytest.raises(ParityError, match="policy version 5"):
            ray.get(actor.generate.remote(requests(), 5), timeout=120)
    finally:
        ray.shutdown()
