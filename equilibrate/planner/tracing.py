"""The memory of one pass, found by running the model's own code without its numbers.

Tensors are PyTorch's fake ones: they have shapes and dtypes and no storage, so a model of any size
is traced on any machine, and nobody has to write down what a kind of model keeps for its backward
pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils

from equilibrate.config.training import TrainingGroup
from equilibrate.errors import DataError
from equilibrate.models.activations import enable_checkpointing
from equilibrate.models.attention import attention_for
from equilibrate.models.chunked import log_probs_of_states
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import CONFIG_FILE, Role, experts_key, read_config
from equilibrate.models.frozen import frozen
from equilibrate.models.log_probs import token_entropies, token_log_probs
from equilibrate.models.lora import adapt
from equilibrate.models.skeleton import build_empty
from equilibrate.planner.peak import peak_bytes

FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """One model in one process."""

    parameters: int
    trained: int
    weights: int
    """Bytes of the parameters."""
    gradients: int
    """Bytes of the gradients of the trained ones."""
    activations: int
    """Bytes that a pass needs at its worst moment beside both."""


@contextmanager
def _rows_are_single() -> Iterator[None]:
    """transformers looks at the numbers of positions whether texts were packed into one row, takes
    it for granted where there are none, and would build masks that no run of ours has."""
    asked = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = asked


class _Held(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def trace(
    folder: str | Path,
    role: Role,
    accelerator: Accelerator,
    *,
    rows: int,
    length: int,
    group: TrainingGroup | None,
) -> Traced:
    """One pass over `rows` x `length` tokens: forward alone, or with the backward pass.

    Args:
        folder: needs to hold a config.json.
        group: how it is trained; None: it is only read.
    Raises: DataError as `build_empty`, or of a mixture of experts: which tokens an expert gets no
        fake tensor says; ConfigError as `require_trainable`.
    """
    if experts := experts_key(read_config(folder)):
        raise DataError(
            f"{Path(folder) / CONFIG_FILE}: {experts}: what a pass of a mixture of experts needs "
            "depends on the numbers in it; nothing is planned for such models"
        )
    # A fake tensor of a GPU asks for one: kernels of a CPU keep the same.
    stand_in = Accelerator("cpu", accelerator.dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), _rows_are_single():
        model = build_empty(folder, role, device="cpu").eval()
        model.config._attn_implementation = attention_for(model, accelerator)
        held = _Held(model)
        if group is None:
            frozen(held, stand_in)
        else:
            _prepare(held, group, stand_in)
        parameters = dict(model.named_parameters())
        trained = [one for one in parameters.values() if one.requires_grad]
        token_ids = torch.zeros(rows, length, dtype=torch.long)
        return Traced(
            parameters=sum(one.numel() for one in parameters.values()),
            trained=sum(one.numel() for one in trained),
            weights=sum(one.numel() * one.element_size() for one in parameters.values()),
            gradients=FLOAT * sum(one.numel() for one in trained),
            activations=_pass_peak(model, role, token_ids, stand_in, is_trained=bool(trained)),
        )


def _prepare(held: Any, group: TrainingGroup, accelerator: Accelerator) -> None:
    if group.adapter is not None:
        adapt(held, group.adapter, accelerator, seed=0)
    if group.activation_checkpointing:
        enable_checkpointing(held.model)


def _pass_peak(
    model: Any,
    role: Role,
    token_ids: torch.Tensor,
    accelerator: Accelerator,
    *,
    is_trained: bool,
) -> int:
    is_plain = role != "policy" or _has_plain_head(model)

    def forward() -> torch.Tensor:
        with torch.set_grad_enabled(is_trained), accelerator.autocast():
            # As `PolicyModel`, but of all tokens: which ones are kept no fake tensor says.
            if not is_plain:
                logits = model(input_ids=token_ids, use_cache=False).logits
                spread = token_entropies(logits, token_ids)
                return token_log_probs(logits, token_ids) + 0 * spread
            outputs = model.base_model(input_ids=token_ids, use_cache=False)
            if role != "policy":
                scores: torch.Tensor = model.score(outputs.last_hidden_state.float())
                return scores
            head = model.get_output_embeddings()
            states = accelerator.narrow(outputs.last_hidden_state)[:, :-1].flatten(0, 1)
            targets = token_ids[:, 1:].flatten()
            weight = accelerator.narrow(head.weight)
            return log_probs_of_states(states, weight, head.bias, targets)[0]

    def both() -> None:
        torch.autograd.backward(forward().sum())

    if not is_trained:
        return peak_bytes(forward)
    both()  # gradients are there from the first pass on, and are added to
    return peak_bytes(both)


def _has_plain_head(model: Any) -> bool:
    """Whether logits are what the head gives and no more: `models.policy.is_head_linear`, which
    asks the numbers."""
    head, given = model.get_output_embeddings(), []
    hook = head.register_forward_hook(lambda _, __, output: given.append(output))
    try:
        logits = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False).logits
    finally:
        hook.remove()
    return isinstance(head, nn.Linear) and len(given) == 1 and logits is given[0]
