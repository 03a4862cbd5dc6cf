from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equilibrate.errors import DataError
from equilibrate.learning.scoring import ScoringWorker
from equilibrate.types import Category, FinishReason, Rollout
from tests.unit.models.toys import causal_model, write_scorer


def rollout(*token_ids: int) -> Rollout:
    return Rollout(
        prompt_id="p",
        copy=0,
        category=Category.GENERAL,
        policy_version=0,
        token_ids=np.array(token_ids),
        response_mask=np.arange(len(token_ids)) > 0,
        rollout_log_probs=np.zeros(len(token_ids), np.float32),
        finish_reason=FinishReason.STOP,
    )


def test_a_token_that_a_model_does_not_know_is_named_with_the_model(tmp_path: Path) -> None:
    model = causal_model()
    model.resize_token_embeddings(40)
    model.save_pretrained(tmp_path / "policy")
    write_scorer(tmp_path / "cost")
    worker = ScoringWorker(
        reward="",
        cost=str(tmp_path / "cost"),
        reference=str(tmp_path / "policy"),
        device="cpu",
        dtype="float32",
        cpu_threads=1,
        max_tokens_per_batch=64,
        temperature=1.0,
    )
    assert len(worker.score([rollout(3, 31)])) == 1
    with pytest.raises(DataError, match=r"'p': token 32 is none of the 32 that .*cost knows"):
        worker.score([rollout(3, 31), rollout(3, 32)])
