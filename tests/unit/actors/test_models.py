from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from actors.device import Accelerator
from actors.models import ScoreModel, first_response_token, suffix_log_probs
from equilibrate.ppo.log_probs import token_log_probs
from equilibrate.preference.sidecar import ScorerSidecar
from equilibrate.types import Category, FinishReason, Rollout


def make_rollout(mask: list[bool]) -> Rollout:
    return Rollout(
        prompt_id="p",
        copy=0,
        category=Category.GENERAL,
        policy_version=0,
        token_ids=np.arange(len(mask)),
        response_mask=np.array(mask),
        rollout_log_probs=np.zeros(len(mask), np.float32),
        finish_reason=FinishReason.STOP,
    )


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([False, False, True, True], 2),
        ([False, False], 1),  # nothing was sampled
        ([True, True], 1),  # nothing predicts the first token
    ],
)
def test_first_response_token(mask: list[bool], expected: int) -> None:
    assert first_response_token(make_rollout(mask)) == expected


@pytest.mark.parametrize("num_logits", [2, 3, 5])
def test_suffix_of_logits_gives_the_log_probs_of_the_tokens_it_predicts(num_logits: int) -> None:
    torch.manual_seed(0)
    logits, token_ids = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    whole = token_log_probs(logits, token_ids, temperature=0.7)
    suffix = suffix_log_probs(logits[:, -num_logits:], token_ids, temperature=0.7)
    # K logits of the last K positions predict the last K - 1 known tokens.
    unknown = 5 - num_logits + 1
    torch.testing.assert_close(suffix[:, unknown:], whole[:, unknown:])
    assert (suffix[:, :unknown] == 0).all()


class Backbone(nn.Module):
    """Hidden state of a token: its id and 1."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Backbone:
        self.last_hidden_state = torch.stack([input_ids.float(), torch.ones(input_ids.shape)], -1)
        return self


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_model = Backbone()
        self.score = nn.Linear(2, 1, bias=False)
        self.score.weight.data = torch.tensor([[1.0, 10.0]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_position_is_scored_in_the_units_of_the_sidecar(dtype: str) -> None:
    sidecar = ScorerSidecar(kind="cost", scale=-2.0, bias=3.0, threshold=1.0)
    scorer = ScoreModel(Scorer(), sidecar, Accelerator("cpu", dtype))  # type: ignore[arg-type]
    scores = scorer(torch.tensor([[4, 5]]))
    # head 4 + 10 = 14 and 15; -2 * head + 3 - 1
    assert scores.tolist() == [[-26.0, -28.0]]
    assert scores.dtype == torch.float32
