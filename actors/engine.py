"""A model under DeepSpeed: steps over any number of ranks, and its weights whole again."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from equilibrate.config.training import AdapterConfig
from equilibrate.models.device import Accelerator
from equilibrate.models.lora import merged_weights, write_adapter
from equilibrate.text.renderer import load_tokenizer

MAX_GRAD_NORM = 1.0


ADAM_BETAS = (0.9, 0.95)
"""The second below the usual 0.999: the targets drift, so old squares mislead."""


CHECKPOINT_TAG = "engine"
ADAPTER = "adapter"
"""Folder beside the merged weights, as peft reads it."""


class DeepSpeedModel:
    """A module with AdamW under DeepSpeed; gradients of all ranks are added up, not averaged.

    Frozen weights are in no checkpoint: the module must hold them when one is loaded.
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        *,
        zero_stage: Literal[0, 1, 2, 3],
        minibatch_size: int,
        adam_epsilon: float = 1e-8,
    ) -> None:
        import deepspeed

        self._zero_stage = zero_stage
        self._world_size = dist.get_world_size()
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._has_frozen = len(trained) < len(list(module.parameters()))
        module.register_state_dict_post_hook(_without_frozen)
        num_parameters = sum(parameter.numel() for parameter in trained)
        optimizer = torch.optim.AdamW(
            trained,
            lr=learning_rate,
            betas=ADAM_BETAS,
            eps=adam_epsilon,
            weight_decay=0.0,
            fused=True,
        )
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config={
                "train_batch_size": minibatch_size,
                # Only says that gradients add up: the passes of a step are cut by tokens.
                "train_micro_batch_size_per_gpu": 1,
                # At stage 0 `step` clips itself: DeepSpeed applies even a gradient of nan there.
                "gradient_clipping": MAX_GRAD_NORM if zero_stage else 0.0,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 10**9,
                "zero_optimization": {
                    "stage": zero_stage,
                    # DeepSpeed allocates whole buckets, by default of 500 million numbers each.
                    "reduce_bucket_size": min(num_parameters, 500_000_000),
                    "allgather_bucket_size": min(num_parameters, 500_000_000),
                },
            },
        )

    @property
    def module(self) -> Any:
        return self._engine.module

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed divides the sum over ranks by their number.
        self._engine.backward(loss * self._world_size, scale_wrt_gas=False)

    def step(self) -> float:
        if self._zero_stage == 0:
            norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), MAX_GRAD_NORM))
            if not math.isfinite(norm):
                return math.nan
            self._engine.step()
            return norm
        self._engine.step()
        return (
            float(self._engine.get_global_grad_norm())
            if self._engine.was_step_applied()
            else math.nan
        )

    def discard(self) -> None:
        self._engine.zero_grad()
        if self._zero_stage == 0:
            return
        optimizer = self._engine.optimizer
        optimizer.zero_grad()
        if self._zero_stage < 3:
            # DeepSpeed has no call for it: stages 1 and 2 keep what earlier micro-batches added.
            optimizer.micro_step_id = -1
            for group in range(len(optimizer.bit16_groups)):
                optimizer.averaged_gradients[group] = None
                optimizer.all_grad_tensors[group] = None

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights of the model, with the change of an adapter in them; all ranks must iterate.

        A tensor is whole only until the next one is asked for, and must not be written to.
        """
        yield from merged_weights(self.module, self._whole)

    def trained_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Those that are not frozen, as `named_weights`; of an adapter its parts."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                with self._whole([parameter]):
                    yield name, parameter.detach()

    def _whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
        if self._zero_stage < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(parameters))

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(
            str(folder), tag=CHECKPOINT_TAG, save_latest=False, exclude_frozen_parameters=True
        )

    def load(self, folder: Path) -> None:
        self._engine.load_checkpoint(
            str(folder), tag=CHECKPOINT_TAG, load_module_strict=not self._has_frozen
        )


def _without_frozen(
    module: nn.Module, state: dict[str, Any], prefix: str, _: Mapping[str, Any]
) -> None:
    """DeepSpeed itself leaves out a frozen weight under its first name alone."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def model_weights(policy: DeepSpeedModel) -> Iterator[tuple[str, Tensor]]:
    """Weights by the model's own names, without those of the module around it."""
    return _by_own_names(policy.named_weights())


def trained_weights(policy: DeepSpeedModel) -> Iterator[tuple[str, Tensor]]:
    """As `model_weights`, those that are not frozen: of an adapter its parts."""
    return _by_own_names(policy.trained_weights())


def _by_own_names(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in named:
        yield name.removeprefix("model."), tensor


def checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    """Trained weights that `DeepSpeedModel.save` wrote, by the model's own names, whole, on the
    CPU.

    Args: folder: that nobody else could have written: DeepSpeed unpickles those of ZeRO-3.
    """
    whole = folder / CHECKPOINT_TAG / "mp_rank_00_model_states.pt"
    if whole.is_file():
        state = torch.load(whole, map_location="cpu", weights_only=True)["module"]
    else:  # ZeRO-3 leaves each rank its part of every weight
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        state = get_fp32_state_dict_from_zero_checkpoint(
            str(folder), tag=CHECKPOINT_TAG, exclude_frozen_parameters=True
        )
    return dict(_by_own_names(state.items()))


def export_model(
    policy: DeepSpeedModel,
    folder: str | Path,
    *,
    tokenizer: str | Path,
    weights: Iterable[tuple[str, Tensor]] | None = None,
    adapter: AdapterConfig | None = None,
) -> None:
    """Write a Hugging Face folder with the tokenizer of another; all ranks must call.

    Args:
        weights: by the model's own names, in place of the present ones; rank 0's are written.
        adapter: of the policy; it is also written by itself, into `ADAPTER` of the folder, unless
            other weights are given, which need not be of a low rank.
    """
    named = model_weights(policy) if weights is None else weights
    whole = {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in named}
    if dist.get_rank() == 0:
        policy.module.model.save_pretrained(folder, state_dict=whole)
        load_tokenizer(tokenizer).save_pretrained(folder)
    if adapter is not None and weights is None:
        _export_adapter(policy, Path(folder) / ADAPTER, adapter, base=str(tokenizer))
    dist.barrier()


def _export_adapter(
    policy: DeepSpeedModel, folder: Path, adapter: AdapterConfig, *, base: str
) -> None:
    trained = {name: tensor.cpu().clone() for name, tensor in trained_weights(policy)}
    if dist.get_rank() == 0:
        write_adapter(folder, trained, adapter, base=base)


def join_group(accelerator: Accelerator) -> None:
    """Meet the other ranks, as the environment says where."""
    # Read by DeepSpeed at import: it must not pick a GPU that the run does not use.
    os.environ["DS_ACCELERATOR"] = accelerator.device
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 announces to drop; every step.
    warnings.filterwarnings("ignore", ".*is deprecated. Please use", FutureWarning)
    import deepspeed

    # One rank per GPU or machine is the rule: shared-memory sums are not worth a C++ compilation of
    # a minute in the first run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not dist.is_initialized():
        deepspeed.init_distributed(
            dist_backend=accelerator.collective, auto_mpi_discovery=False, verbose=False
        )
