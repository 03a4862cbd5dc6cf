from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from equilibrate.config.train import AmaConfig, PPOConfig
from equilibrate.learning.targets import (
    batch_metrics,
    make_train_batch,
    staleness_metrics,
)
from equilibrate.ppo.batches import collate
from equilibrate.seeds import derive_seed
from equilibrate.types import FinishReason, ScoredRollout, TokenBatch, TrainBatch
from tests.fakes import make_prompt, make_rollout, make_scored

MASK = torch.tensor([[False, True, True], [False, True, False]])


def row(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor([list(values), [0.0, 0.0, 0.0]])


def make_tokens(**changes: Any) -> TokenBatch:
    """Row 0: two response tokens, reward 2, cost 1. Row 1: one response token, scores 0."""
    zeros = torch.zeros(2, 3)
    tokens = TokenBatch(
        token_ids=torch.zeros(2, 3, dtype=torch.int64),
        response_mask=MASK,
        rollout_log_probs=zeros,
        old_log_probs=zeros,
        ref_log_probs=zeros,
        values=zeros,
        cost_values=zeros,
        token_rewards=zeros,
        token_costs=zeros,
        reward=torch.tensor([2.0, 0.0]),
        cost=torch.tensor([1.0, 0.0]),
        may_be_masked=torch.tensor([True, True]),
        prompt_groups=torch.tensor([0, 0]),
    )
    return replace(tokens, **changes)


def make(
    tokens: TokenBatch,
    *,
    advantage: Literal["gae", "rloo", "grpo", "reinforce_plus_plus"] = "gae",
    multiplier: float = 0.0,
    ama: AmaConfig | None = None,
    is_weighed: bool = False,
    seed: int = 0,
) -> TrainBatch:
    ppo = PPOConfig(advantage=advantage, gamma=1.0, gae_lambda=1.0)
    return make_train_batch(
        tokens,
        multiplier=multiplier,
        kl_coef=0.5,
        ppo=ppo,
        ama=ama,
        is_weighed=is_weighed,
        seed=seed,
    )


def test_kl_enters_both_signals_and_lambda_leaves_its_strength_alone() -> None:
    # KL 0.4 at the first response token: -0.2 in the reward, +0.2 in the cost.
    tokens = make_tokens(old_log_probs=row([9.0, 0.4, 0.0]))
    assert make(tokens).advantages[0].tolist() == pytest.approx([0.0, 1.8, 2.0])  # lambda 0
    train = make(tokens, multiplier=3.0)
    # (1.8 - 3 * 1.2) / 4 = -0.45 = (2 - 3) / 4 - 0.2;  (2 - 3) / 4 = -0.25
    assert train.advantages[0].tolist() == pytest.approx([0.0, -0.45, -0.25])


@pytest.mark.parametrize(
    ("advantage", "reward", "combined"),
    [
        # R 2 against 0, C 1 against 0, lambda 3: (2 - 3 x 1) / 4
        ("rloo", 2.0, -0.25),
        # 1 and 0.5 from the mean, deviations sqrt(2) and sqrt(1/2): (1 - 3) / 4 of sqrt(1/2)
        ("grpo", math.sqrt(0.5), -math.sqrt(0.5) / 2),
        # returns to go 2, 2, 0: mean 4/3, deviation sqrt(8/9): (2/3) / sqrt(8/9) = sqrt(1/2)
        ("reinforce_plus_plus", math.sqrt(0.5), -math.sqrt(0.5) / 2),
    ],
)
def test_advantages_without_a_critic(advantage: Any, reward: float, combined: float) -> None:
    # Values are there and must not be read.
    tokens = make_tokens(values=row([9.0, 9.0, 9.0]))
    alone = make(tokens, advantage=advantage)  # lambda 0
    assert alone.advantages[0].tolist() == pytest.approx([0.0, reward, reward], rel=1e-3)
    train = make(tokens, advantage=advantage, multiplier=3.0)
    assert train.advantages[0].tolist() == pytest.approx([0.0, combined, combined], rel=1e-3)
    assert not train.returns.any()


def test_grpo_takes_the_kl_penalty_beside_its_scores() -> None:
    # KL 0.4 at the first response token: 0.5 x 0.4 off there, whatever lambda.
    plain = make(make_tokens(), advantage="grpo", multiplier=3.0).advantages
    tokens = make_tokens(old_log_probs=row([9.0, 0.4, 0.0]))
    penalised = make(tokens, advantage="grpo", multiplier=3.0).advantages
    assert (penalised - plain)[0].tolist() == pytest.approx([0.0, -0.2, 0.0])


def test_without_ama_every_response_token_may_move_the_policy() -> None:
    assert torch.equal(make(make_tokens()).gradient_mask, MASK)


def test_ama_keeps_steps_that_agree_with_the_advantage() -> None:
    # Advantages 2 at both tokens; prefix rewards 1 -> 4 -> 3: steps +3 and -1.
    train = make(make_tokens(token_rewards=row([1.0, 4.0, 3.0])), ama=AmaConfig(source="reward"))
    assert train.gradient_mask[0].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("zero", [True, True]),
        # Prefix rewards 4 and 1 of this row, 1 of the other: (4 + 1 + 1) / 3 = 2.
        ("batch_mean", [True, False]),
        ("sequence_mean", [True, False]),  # 2.5
        (5.0, [False, False]),
    ],
)
def test_baselines(baseline: Any, expected: list[bool]) -> None:
    rewards = torch.tensor([[0.0, 4.0, 1.0], [0.0, 1.0, 0.0]])
    ama = AmaConfig(source="reward", delta=False, baseline=baseline)
    train = make(make_tokens(token_rewards=rewards), ama=ama)
    assert train.gradient_mask[0, 1:].tolist() == expected


def test_side_of_a_response_is_the_sign_of_its_score_above_the_baseline() -> None:
    # Scores 2 and 0: signs + and + above zero, + and - above their mean 1.
    rewards = torch.tensor([[0.0, 4.0, 1.0], [0.0, -1.0, 0.0]])
    tokens = make_tokens(token_rewards=rewards)
    by_zero = make(tokens, ama=AmaConfig(source="reward", delta=False, side="sequence"))
    assert by_zero.gradient_mask.tolist() == [[False, True, True], [False, False, False]]
    by_mean = make(
        tokens,
        ama=AmaConfig(source="reward", delta=False, side="sequence", baseline="batch_mean"),
    )
    # Mean signal (4 + 1 - 1) / 3 = 4/3: kept are 4 in the good response and -1 in the bad one.
    assert by_mean.gradient_mask.tolist() == [[False, True, False], [False, True, False]]


def test_random_control_keeps_as_many_and_follows_its_seed() -> None:
    tokens = make_tokens(token_rewards=row([1.0, 4.0, 3.0]))
    ama = AmaConfig(source="reward", random_control=True)
    masks = [make(tokens, ama=ama, seed=seed).gradient_mask for seed in range(8)]
    assert all(int(mask.sum()) == 1 for mask in masks)
    assert torch.equal(masks[0], make(tokens, ama=ama, seed=0).gradient_mask)
    assert any(not torch.equal(masks[0], mask) for mask in masks)


def test_tokens_of_an_older_policy_weigh_by_what_they_are_worth_now() -> None:
    # Likelier by ln 3 and by ln 1/2 than when they were sampled: weights 2 (cut from 3) and 1/2.
    old = row([0.0, math.log(3.0), -math.log(2.0)])
    tokens = make_tokens(old_log_probs=old, ref_log_probs=old)
    fresh, stale = make(tokens), make(tokens, is_weighed=True)
    assert fresh.advantages[0].tolist() == pytest.approx([0.0, 2.0, 2.0])
    assert stale.advantages[0].tolist() == pytest.approx([0.0, 4.0, 1.0])
    # The critics learn what the responses brought, whoever sampled them.
    assert torch.equal(fresh.returns, stale.returns)
    metrics = staleness_metrics(tokens)
    # Three response tokens; the third has the weight 1.
    assert metrics["importance_weight"] == pytest.approx((2.0 + 0.5 + 1.0) / 3)
    assert metrics["importance_capped"] == pytest.approx(1 / 3)
    # exp(d) - 1 - d: 3 - 1 - ln 3 and 1/2 - 1 + ln 2
    expected = (2.0 - math.log(3.0)) + (math.log(2.0) - 0.5)
    assert metrics["mismatch_kl"] == pytest.approx(expected / 3)


def test_batch_metrics_are_means_over_response_tokens() -> None:
    tokens = make_tokens(old_log_probs=row([9.0, 0.4, 0.2]))
    metrics = batch_metrics(make(tokens), torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 0.0]]))
    # three response tokens: (0.4 + 0.2 + 0) / 3, (1 + 2 + 3) / 3
    expected = {"num_tokens": 3.0, "kl": 0.2, "entropy": 2.0, "kept_fraction": 1.0}
    assert metrics == pytest.approx(expected)


def test_seeds_depend_on_every_number_and_their_order() -> None:
    seeds = {derive_seed(*numbers) for numbers in [(1, 2), (2, 1), (1, 2, 0, 1), (1, 3)]}
    assert len(seeds) == 4
    assert derive_seed(1, 2) == derive_seed(1, 2)


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo", "reinforce_plus_plus"])
@pytest.mark.parametrize(
    "ama", [None, AmaConfig(delta=False, side="sequence", baseline="batch_mean")]
)
@pytest.mark.parametrize("cause", ["a broken score", "a cut"])
def test_rollout_that_is_left_out_changes_nothing_for_the_others(
    advantage: Any, ama: AmaConfig | None, cause: str
) -> None:
    prompts = [make_prompt(text) for text in ("a", "a", "a", "b", "b")]
    rows = [
        make_scored(make_rollout(prompt, response=(7,) * (2 + i)), reward=10.0 + i, cost=1.0 - i)
        for i, prompt in enumerate(prompts)
    ]
    broken = [replace(rows[1], reward=math.nan), *rows, replace(rows[4], cost=math.inf)]
    if cause == "a cut":
        cut = [
            replace(row, rollout=replace(row.rollout, finish_reason=FinishReason.LENGTH))
            for row in (rows[1], rows[4])
        ]
        broken = [cut[0], *rows, cut[1]]

    def train(scored: list[ScoredRollout]) -> TrainBatch:
        batch = collate(scored, pad_token_id=0, truncated="mask")
        values = torch.where(batch.response_mask, 0.5, 0.0)
        outputs = {"old_log_probs": values, "values": values, "cost_values": values}
        tokens = batch.with_learner_outputs(**outputs)
        return make(tokens, advantage=advantage, multiplier=2.0, ama=ama)

    with_broken, without = train(broken), train(rows)
    for field in ("advantages", "returns", "cost_returns"):
        torch.testing.assert_close(getattr(with_broken, field)[1:6], getattr(without, field))
        assert not getattr(with_broken, field)[[0, 6]].any()
    assert torch.equal(with_broken.gradient_mask[1:6], without.gradient_mask)
    zeros = torch.zeros_like(with_broken.advantages)
    assert batch_metrics(with_broken, zeros) == pytest.approx(
        batch_metrics(without, zeros[1:6]), abs=1e-7
    )
