"""TRL's DPO loss on numbers that anybody can make again. Run it where trl 1.12.0 is installed:

    python tests/golden/dpo_from_trl.py

It prints what tests/unit/preference/test_policy_losses.py holds. Only the forward passes are faked.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import torch
from trl.trainer.dpo_trainer import DPOTrainer

BETA = 0.3
SHAPE = (4, 6, 7)
"""Two chosen answers and the two rejected ones, positions, words."""
LENGTHS = (6, 5, 4, 6)
PROMPT = 2


def logits(frequency: float) -> torch.Tensor:
    numbers = torch.arange(math.prod(SHAPE), dtype=torch.float64)
    return (2 * torch.sin(frequency * numbers)).float().view(SHAPE)


class Model(torch.nn.Module):
    is_gradient_checkpointing = False

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, **inputs: object) -> SimpleNamespace:
        return SimpleNamespace(logits=logits(self.frequency))


def main() -> None:
    positions = torch.arange(SHAPE[1])[None]
    lengths = torch.tensor(LENGTHS)[:, None]
    token_ids = (3 * torch.arange(SHAPE[0])[:, None] + 5 * positions) % SHAPE[2]
    policy, reference = Model(0.7), Model(1.3)
    trainer = SimpleNamespace(
        model=policy,
        ref_model=reference,
        accelerator=SimpleNamespace(
            device=torch.device("cpu"),
            gather=lambda x: x,
            gather_for_metrics=lambda x: x,
            unwrap_model=lambda x: x,
        ),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=BETA,
        ld_alpha=None,
        use_weighting=False,
        label_smoothing=0.0,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": token_ids,
        "attention_mask": (positions < lengths).long(),
        "completion_mask": ((positions < lengths) & (positions >= PROMPT)).long(),
    }
    print(DPOTrainer._compute_loss(trainer, policy, inputs, return_outputs=False).item())


if __name__ == "__main__":
    main()
