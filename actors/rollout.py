"""The generator: one vLLM engine, living in the process of its actor.

Token ids in, token ids and log-probs out. The log-probs are those of the distribution that was
sampled (temperature applied, no truncation), so a learner that divides its logits by the same
temperature finds the same numbers.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.weights import (
    PackedWeights,
    SyncOutcome,
    load_version,
    register_object_store_engine,
    update_with_repair,
    verify_weights,
)
from equilibrate.config.base import GPU_UTILIZATION
from equilibrate.config.training import AdapterConfig
from equilibrate.errors import (
    DataError,
    NumericsError,
    ParityError,
    WorkerLostError,
    is_out_of_memory,
)
from equilibrate.models.loading import read_policy
from equilibrate.models.lora import part_shapes
from equilibrate.models.names import sent_shapes
from equilibrate.models.skeleton import skeleton
from equilibrate.text.renderer import end_ids_of
from equilibrate.types import FinishReason, Rollout, RolloutRequest

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

logger = logging.getLogger(__name__)

UNSYNCED = -1
"""Version of an engine that still holds what its model folder held; no policy has this version."""


def engine_environment(*, device: str, threads: int) -> dict[str, str]:
    """Environment of a process that holds a `RolloutWorker`, to be set before it imports vLLM.

    Args:
        device: `cpu` or `cuda`.
        threads: threads of the tensor library.
    """
    environment = {
        # An engine in a child process can die and leave its parent waiting for ever; here its
        # death is the actor's death, which Ray reports.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    if device == "cpu":
        # Compilation delays the first tokens by 7 to 20 s; binding would pin all workers to the
        # same cores.
        environment |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return environment


def prefill_settings(*, is_cpu: bool) -> dict[str, Any]:
    """Arguments of vLLM's engine that say how prompts are read.

    Where more prompts come together than a step takes, one is read in parts, and the token that is
    sampled behind a part is thrown away by turning back the generator of its request's seed. That
    of a CPU cannot turn back, so there a prompt waits until it fits whole.
    """
    return {"enable_chunked_prefill": False} if is_cpu else {}


class RolloutWorker:
    """Samples responses from one version of the policy; a `Host` holds it."""

    def __init__(
        self,
        *,
        model_folder: str,
        dtype: str,
        temperature: float,
        max_new_tokens: int,
        max_model_len: int,
        kv_cache_gib: float | None,
        enforce_eager: bool,
        gpu_share: float = 1.0,
    ) -> None:
        """Start the engine on a Hugging Face folder; it generates nothing until the first sync.

        Args:
            max_model_len: longest prompt and response together, in tokens.
            kv_cache_gib: None leaves vLLM's default share of the device.
            gpu_share: of the GPU that is this engine's; others may have the rest.
        Raises: DataError if the folder is not whole, as `models.folders.check_folder`.
        """
        self._skeleton = skeleton(model_folder, "policy")
        self._whole_shapes = sent_shapes(self._skeleton)
        self._read_base = cache(partial(read_policy, model_folder))
        """The folder's own weights, for adapters: pages of the file, as a rule no copy."""
        self._max_model_len = max_model_len
        self._engine_options: dict[str, Any] = {
            "model": model_folder,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "kv_cache_memory_bytes": int(kv_cache_gib * 2**30) if kv_cache_gib else None,
            "enforce_eager": enforce_eager,
            "gpu_memory_utilization": GPU_UTILIZATION * min(1.0, gpu_share),
            # By default it falls back to pickled weights.
            "load_format": "safetensors",
        }
        self._sampling = {
            "temperature": temperature,
            "max_tokens": max_new_tokens,
            "stop_token_ids": end_ids_of(model_folder),
        }
        self._llm = self._start_engine()
        self._is_tainted = False
        """True between start and end of an update: the engine holds parts of two versions."""

    def generate(self, requests: Sequence[RolloutRequest], policy_version: int) -> list[Rollout]:
        """One rollout per request, in order; an end-of-sequence token is part of its response.

        Raises:
            ParityError: the engine does not hold `policy_version`.
            DataError: a prompt is empty or leaves no room for a response.
            NumericsError: a sampled token has a non-finite log-prob.
            WorkerLostError: the engine broke; it must be replaced.
        """
        self._require_version(policy_version)
        for request in requests:
            if not 0 < len(request.token_ids) < self._max_model_len:
                raise DataError(
                    f"prompt {request.prompt_id!r} ({len(request.token_ids)} tokens) must have "
                    f"1 to {self._max_model_len - 1} tokens under rollout.max_model_len "
                    f"({self._max_model_len})"
                )
        parameters = [
            _sampling_params(seed=request.seed, logprobs=0, **self._sampling)
            for request in requests
        ]
        outputs = self._run([request.token_ids for request in requests], parameters)
        return [
            _to_rollout(request, output, policy_version)
            for request, output in zip(requests, outputs, strict=True)
        ]

    def update_weights(self, weights: PackedWeights, version: int) -> SyncOutcome:
        """Load a whole version, repairing an update that breaks off half-way.

        Raises:
            NumericsError: the weights are damaged or incomplete; the engine keeps what it has.
            WorkerLostError: not even a fresh engine took them.
        """
        verify_weights(weights, self._expected_shapes(weights.adapter))

        load = partial(load_version, weights=weights, read_base=self._read_base)

        def update() -> None:
            self._is_tainted = True
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": {"load": load}})
            self._llm.finish_weight_update(weight_version=str(version))
            self._llm.reset_prefix_cache()
            self._is_tainted = False

        try:
            return update_with_repair(update, self.rebuild)
        except Exception as error:
            if is_out_of_memory(error):
                raise  # another engine would get no more
            raise WorkerLostError(
                f"policy version {version} could not be loaded: {error!r}"
            ) from error

    def _expected_shapes(self, adapter: AdapterConfig | None) -> Mapping[str, tuple[int, ...]]:
        if adapter is None:
            return self._whole_shapes
        return part_shapes(self._skeleton, adapter)

    def weight_version(self) -> int:
        """Version of the last complete update, or `UNSYNCED`."""
        version = self._llm.get_weight_version()
        return UNSYNCED if version == "default" else int(version)

    def rebuild(self) -> None:
        """Start the engine anew from its folder; the next sync makes it usable."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        cleanup_dist_env_and_memory()
        self._llm = self._start_engine()
        self._is_tainted = False

    def _start_engine(self) -> LLM:
        from vllm import LLM
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform

        return LLM(
            **self._engine_options,
            **prefill_settings(is_cpu=current_platform.is_cpu()),
            skip_tokenizer_init=True,
            # Log-probs of the distribution that is sampled from, not of the one before temperature.
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=False,
            weight_transfer_config=WeightTransferConfig(backend=register_object_store_engine()),
        )

    def _require_version(self, policy_version: int) -> None:
        version = self.weight_version()
        if self._is_tainted or version != policy_version:
            state = "a broken-off update over version" if self._is_tainted else "version"
            raise ParityError(
                f"generator holds {state} {version}, but policy version {policy_version} was asked "
                "for; sync it first"
            )

    def _run(
        self, token_ids: Sequence[Sequence[int]], parameters: Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        prompts = [{"prompt_token_ids": list(ids)} for ids in token_ids]
        try:
            return self._llm.generate(prompts, parameters, use_tqdm=False)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # Requests of this call may still sit in the scheduler and surface in the next call.
            raise WorkerLostError(f"vLLM failed while generating: {error!r}") from error


def _sampling_params(**fields: Any) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        **fields,
        detokenize=False,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def _to_rollout(request: RolloutRequest, output: RequestOutput, policy_version: int) -> Rollout:
    completion = output.outputs[0]
    num_prompt_tokens = len(request.token_ids)
    token_ids = np.array((*request.token_ids, *completion.token_ids), dtype=np.int64)
    response_mask = np.arange(len(token_ids)) >= num_prompt_tokens
    log_probs = np.zeros(len(token_ids), dtype=np.float32)
    log_probs[num_prompt_tokens:] = completion.logprobs.logprobs
    if not np.isfinite(log_probs).all():
        raise NumericsError(
            f"prompt {request.prompt_id!r}, copy {request.copy}: the generator gave a non-finite "
            f"log-prob under policy version {policy_version}; its logits hold nan"
        )
    if {span.version for span in completion.weight_versions} != {str(policy_version)}:
        raise ParityError(
            f"prompt {request.prompt_id!r}: sampled by {completion.weight_versions}, "
            f"but policy version {policy_version} was asked for"
        )
    return Rollout(
        prompt_id=request.prompt_id,
        copy=request.copy,
        category=request.category,
        policy_version=policy_version,
        token_ids=token_ids,
        response_mask=response_mask,
        rollout_log_probs=log_probs,
        finish_reason=FinishReason(completion.finish_reason),
    )
