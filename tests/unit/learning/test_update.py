"""How a rank cuts its rows, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.learning.passes import Critic, Passes
from equilibrate.learning.update import LossSettings, PtxShare, Update
from equilibrate.ppo.batches import Indices, collate
from equilibrate.types import TrainBatch
from tests.fakes import make_rollout, make_scored

NO_MODEL: Any = None


def passes(rank: int, world_size: int, max_tokens: int) -> Passes:
    return Passes(
        policy=NO_MODEL,
        critics=(),
        rank=rank,
        world_size=world_size,
        max_tokens_per_batch=max_tokens,
        temperature=1.0,
        device=torch.device("cpu"),
    )


def test_rows_are_cut_by_padded_tokens() -> None:
    lengths = np.array([5, 10, 4, 9, 1])
    parts = passes(0, 1, 20).micro_batches(np.arange(5), lengths)
    # Longest first: 2 x 10 tokens fit, then 3 x 5 (4 would).
    assert [part.tolist() for part in parts] == [[1, 3], [0, 2, 4]]


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.lists(st.integers(1, 30), min_size=24, max_size=24),
    st.integers(1, 90),
)
def test_ranks_share_all_rows_in_equally_many_cuts(
    world_size: int, rows_per_rank: int, all_lengths: list[int], max_tokens: int
) -> None:
    lengths = np.array(all_lengths)
    rows = cast(Indices, np.random.default_rng(0).permutation(24)[: world_size * rows_per_rank])
    ranks = [
        passes(rank, world_size, max_tokens).micro_batches(rows, lengths)
        for rank in range(world_size)
    ]
    assert len({len(parts) for parts in ranks}) == 1
    parts = [part for of_rank in ranks for part in of_rank]
    assert sorted(np.concatenate(parts)) == sorted(rows)
    for part in parts:
        assert len(part) == 1 or len(part) * lengths[part].max() <= max_tokens


class FakePolicy:
    """Log-probs and entropies of 0 with a graph."""

    def __call__(self, token_ids: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        zeros = torch.zeros(token_ids.shape, requires_grad=True)
        return zeros * 1.0, zeros.detach()


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "is_kept"),
    [
        ([60, 58], 120, True),
        ([60, 58], 119, False),
        # Within the budget, but the padding of one pass costs more than a second pass.
        ([107, *[29] * 15], 8192, False),
    ],
)
def test_outputs_are_kept_for_the_update_if_one_pass_holds_them(
    lengths: list[int], max_tokens: int, is_kept: bool
) -> None:
    # Prompts of two tokens.
    rows = [make_scored(make_rollout(response=(7,) * (length - 2))) for length in lengths]
    policy: Any = FakePolicy()
    alone = replace(passes(0, 1, max_tokens), policy=policy)
    batch = collate(rows, pad_token_id=0)
    found, graphs = alone.before(batch, np.array(lengths), is_only_step=True)
    assert found["old_log_probs"].shape == batch.token_ids.shape
    assert not found["old_log_probs"].requires_grad
    assert (graphs is not None) == is_kept
    if graphs is not None:
        assert graphs["old_log_probs"].requires_grad
    _, ordinary = alone.before(batch, np.array(lengths))
    assert ordinary is None


def test_pretraining_rows_count_in_the_budget() -> None:
    """Rollouts of 40 and 9 tokens, texts of 10: a pass pads both to the wider one."""
    lengths = np.array([9, 40, 9, 9, 9])
    share = PtxShare(
        token_ids=torch.arange(5)[:, None].expand(5, 10),
        mask=torch.ones(5, 10, dtype=torch.bool),
        num_tokens=50,
    )
    parts = passes(0, 1, 80).micro_batches(np.arange(5), share.widths(lengths))
    # (1 + 1) x 40, then (4 + 4) x 10.
    assert [part.tolist() for part in parts] == [[1], [0, 2, 3, 4]]
    assert share.part(1, 3).token_ids[:, 0].tolist() == [1, 2]
    assert share.part(1, 3).num_tokens == 50


class TableModel:
    """A bias for each of ten words: log-probs of a policy, or values of a critic, times a number
    for each of its heads."""

    def __init__(self, *, is_policy: bool, heads: Sequence[float] = (1.0,)) -> None:
        self.bias = torch.linspace(0.0, 1.0, 10, dtype=torch.float64).requires_grad_()
        self.is_policy = is_policy
        self.heads = heads

    def __call__(self, token_ids: torch.Tensor, *_: Any) -> Any:
        if not self.is_policy:
            return self.bias[token_ids].unsqueeze(-1) * torch.tensor(self.heads)
        log_probs = self.bias.log_softmax(0)[token_ids]
        return log_probs, torch.zeros_like(log_probs)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        loss.backward()

    def step(self) -> float:
        assert self.bias.grad is not None
        return float(self.bias.grad.norm())


def critic(model: Any, *fields: str) -> Critic:
    return Critic(model, fields or ("values",))


class CountingModel(TableModel):
    num_steps = 0

    def step(self) -> float:
        self.num_steps += 1
        return super().step()


SETTINGS = LossSettings(
    minibatch_size=4,
    epochs=1,
    clip_range=0.2,
    value_clip_range=5.0,
    mean_over="tokens",
    divide_by_kept=True,
    ptx_coef=0.0,
    seed=0,
)


def ragged_batch() -> tuple[TrainBatch, Indices]:
    """Responses of 1 to 4 tokens after prompts of two; AMA drops the second token of each."""
    responses = [(3,), (4, 5, 6), (7, 8), (1, 9, 3, 5)]
    rows = [make_scored(make_rollout(response=response)) for response in responses]
    batch = collate(rows, pad_token_id=0)
    zeros = torch.zeros(batch.token_ids.shape, dtype=torch.float64)
    tokens = batch.with_learner_outputs(old_log_probs=zeros - 2.0, values=zeros, cost_values=zeros)
    numbers = torch.arange(zeros.numel(), dtype=torch.float64).view_as(zeros)
    kept = batch.response_mask & (torch.arange(zeros.shape[1]) != 3)
    train = TrainBatch(
        tokens=tokens,
        advantages=numbers.sin(),
        returns=numbers.cos(),
        cost_returns=zeros,
        gradient_mask=kept,
    )
    return train, np.array([2 + len(response) for response in responses])


def gradients(
    *, world_size: int, max_tokens: int, mean_over: Literal["tokens", "sequences"]
) -> list[torch.Tensor]:
    """Of policy and critic after one minibatch of all rows, summed over ranks."""
    train, lengths = ragged_batch()
    settings = replace(SETTINGS, mean_over=mean_over)
    sums = [torch.zeros(10, dtype=torch.float64)] * 2
    for rank in range(world_size):
        models: Any = [TableModel(is_policy=True), TableModel(is_policy=False)]
        own = replace(
            passes(rank, world_size, max_tokens), policy=models[0], critics=[critic(models[1])]
        )
        Update(own, train, lengths, settings, iteration=0, ptx=None).run()
        sums = [total + model.bias.grad for total, model in zip(sums, models, strict=True)]
    return sums


@pytest.mark.parametrize("mean_over", ["tokens", "sequences"])
def test_ranks_and_cuts_do_not_change_the_gradient(
    mean_over: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_: None)
    whole = gradients(world_size=1, max_tokens=1000, mean_over=mean_over)
    for world_size, max_tokens in [(1, 6), (2, 1000), (2, 6), (4, 6)]:
        parts = gradients(world_size=world_size, max_tokens=max_tokens, mean_over=mean_over)
        torch.testing.assert_close(parts, whole)


def test_the_two_means_are_not_one() -> None:
    tokens, sequences = (
        gradients(world_size=1, max_tokens=1000, mean_over=mean_over)
        for mean_over in ("tokens", "sequences")
    )
    for one, other in zip(tokens, sequences, strict=True):
        assert not torch.allclose(one, other)


def test_the_mean_over_sequences_against_a_few_lines() -> None:
    train, _ = ragged_batch()
    bias = torch.linspace(0.0, 1.0, 10, dtype=torch.float64).requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for row in range(4):
        kept = train.gradient_mask[row]
        log_probs = bias.log_softmax(0)[train.tokens.token_ids[row]]
        ratio = (log_probs - train.tokens.old_log_probs[row]).exp()
        gain = torch.minimum(
            ratio * train.advantages[row], ratio.clamp(0.8, 1.2) * train.advantages[row]
        )
        loss = loss - gain[kept].mean() / 4
    loss.backward()
    found = gradients(world_size=1, max_tokens=1000, mean_over="sequences")[0]
    torch.testing.assert_close(found, bias.grad)


def test_a_critic_of_two_heads_learns_the_sum_of_what_two_critics_do() -> None:
    train, lengths = ragged_batch()
    train = replace(train, cost_returns=train.returns.flip(1))

    def learned(*critics: Critic) -> tuple[dict[str, float], torch.Tensor]:
        own = replace(passes(0, 1, 6), policy=TableModel(is_policy=True), critics=critics)
        metrics, _ = Update(own, train, lengths, SETTINGS, iteration=0, ptx=None).run()
        models: Any = {id(one.model): one.model for one in critics}
        return metrics, sum(model.bias.grad for model in models.values())

    two = learned(
        critic(TableModel(is_policy=False)),
        critic(TableModel(is_policy=False, heads=(2.0,)), "cost_values"),
    )
    both = critic(TableModel(is_policy=False, heads=(1.0, 2.0)), "values", "cost_values")
    one = learned(both)
    assert one[0] == pytest.approx(two[0])
    assert one[0]["value_loss"] != pytest.approx(one[0]["cost_value_loss"])
    torch.testing.assert_close(one[1], two[1])


def test_minibatch_without_a_response_moves_nothing() -> None:
    train, lengths = ragged_batch()
    said = train.tokens.response_mask.clone()
    said[2] = False
    tokens = replace(train.tokens, response_mask=said)
    train = replace(train, tokens=tokens, gradient_mask=train.gradient_mask & said)
    models: Any = [CountingModel(is_policy=True), CountingModel(is_policy=False)]
    own = replace(passes(0, 1, 1000), policy=models[0], critics=[critic(models[1])])
    alone = replace(SETTINGS, minibatch_size=1)
    metrics, skipped = Update(own, train, lengths, alone, iteration=0, ptx=None).run()
    assert [model.num_steps for model in models] == [3, 3]
    assert not skipped
    assert all(np.isfinite(value) for value in metrics.values())
