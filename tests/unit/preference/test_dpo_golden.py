"""Our DPO loss against TRL's on the same numbers."""

from __future__ import annotations

import math

import pytest
import torch

from equilibrate.models.log_probs import token_log_probs
from equilibrate.preference.policy_losses import dpo_loss, masked_log_ratios

TRL_LOSS = 0.650293231010437
"""Printed by tests/golden/dpo_from_trl.py with trl 1.12.0."""
SHAPE, LENGTHS, PROMPT, BETA = (4, 6, 7), (6, 5, 4, 6), 2, 0.3


def log_probs(frequency: float, token_ids: torch.Tensor) -> torch.Tensor:
    numbers = torch.arange(math.prod(SHAPE), dtype=torch.float64)
    return token_log_probs((2 * torch.sin(frequency * numbers)).float().view(SHAPE), token_ids)


def test_dpo_equals_trl():
    positions, lengths = torch.arange(SHAPE[1])[None], torch.tensor(LENGTHS)[:, None]
    token_ids = (3 * torch.arange(SHAPE[0])[:, None] + 5 * positions) % SHAPE[2]
    mask = (positions < lengths) & (positions >= PROMPT)
    sums = masked_log_ratios(
        log_probs(0.7, token_ids), log_probs(1.3, token_ids), mask, mask, mode="gradient"
    )
    loss = dpo_loss(*sums.chunk(2), beta=BETA, num_pairs=2)
    assert loss.item() == pytest.approx(TRL_LOSS, rel=1e-6)
