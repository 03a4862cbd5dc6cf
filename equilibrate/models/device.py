"""The one place that knows devices: where tensors live, who adds them up, how wide they are."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from equilibrate.errors import ResourceError

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What one worker process computes on."""

    device: Device
    dtype: Dtype

    @property
    def torch_device(self) -> torch.device:
        """On CUDA the process's only visible GPU: Ray hides the others."""
        return torch.device("cpu" if self.device == "cpu" else "cuda:0")

    @property
    def collective(self) -> Literal["gloo", "nccl"]:
        """Backend of `torch.distributed`."""
        return "gloo" if self.device == "cpu" else "nccl"

    def prepare(self, *, threads: int) -> None:
        """Once per process: take `threads` CPU threads and make every kernel repeatable.

        Raises: ResourceError if CUDA is wanted and there is none.
        """
        torch.set_num_threads(threads)
        if self.device == "cuda":
            if not torch.cuda.is_available():
                raise ResourceError(
                    "device ('cuda') needs a GPU in this worker and PyTorch sees none; "
                    "set device: cpu, or give the group gpus: 1"
                )
            torch.cuda.set_device(self.torch_device)
            # Full float32 products, or the parity with the generator is lost.
            torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(True, warn_only=self.device == "cuda")
        # Filling fresh memory costs time and hides only reads that never happen.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in `dtype`, while parameters and reductions stay float32."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    @property
    def has_slow_narrow_attention(self) -> bool:
        """On a CPU, PyTorch takes six times as long to differentiate it as in float32."""
        return self.device == "cpu" and self.dtype == "bfloat16"

    def narrow(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as `autocast` would hand it to a product."""
        return tensor if self.dtype == "float32" else tensor.to(torch.bfloat16)

    def rng_state(self) -> dict[str, Any]:
        """States of all global generators of this process, as plain numbers and tensors."""
        # numpy states the type of either form of its answer at once.
        legacy: tuple[Any, ...] = np.random.get_state(legacy=True)  # type: ignore[assignment]
        name, keys, *rest = legacy
        state = {
            "python": random.getstate(),
            "numpy": (name, keys.tolist(), *rest),
            "torch": torch.get_rng_state(),
        }
        if self.device == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.torch_device)
        return state

    def set_rng_state(self, state: Mapping[str, Any]) -> None:
        random.setstate(state["python"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if self.device == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.torch_device)
