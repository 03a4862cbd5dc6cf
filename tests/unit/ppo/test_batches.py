from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.ppo.batches import (
    PASS_TOKENS,
    collate,
    minibatch_indices,
    shard_rows,
    token_budget_batches,
)
from equilibrate.types import Category, FinishReason, Rollout, ScoredRollout


def scored(
    prompt,
    response,
    category=Category.GENERAL,
    reward=1.0,
    cost=-1.0,
    finish_reason=FinishReason.STOP,
):
    length = len(prompt) + len(response)
    rollout = Rollout(
        prompt_id="p",
        copy=0,
        category=category,
        policy_version=3,
        token_ids=np.array([*prompt, *response]),
        response_mask=np.array([False] * len(prompt) + [True] * len(response)),
        rollout_log_probs=np.array([0.0] * len(prompt) + [-0.5] * len(response), dtype=np.float32),
        finish_reason=finish_reason,
    )
    return ScoredRollout(
        rollout=rollout,
        reward=reward,
        cost=cost,
        token_rewards=np.arange(length, dtype=np.float32),
        token_costs=-np.arange(length, dtype=np.float32),
        ref_log_probs=np.full(length, -0.25, dtype=np.float32),
    )


def two_rows():
    return collate(
        [
            scored([5, 6], [7, 0]),  # ends with the id that is also the padding
            scored([5], [8, 9, 7, 2], Category.EHD, reward=2.0, cost=3.0),
        ],
        pad_token_id=0,
        ungated=(Category.GENERAL,),
    )


def test_collate_pads_on_the_right():
    batch = two_rows()
    assert batch.token_ids.tolist() == [[5, 6, 7, 0, 0], [5, 8, 9, 7, 2]]
    assert batch.response_mask.tolist() == [
        [False, False, True, True, False],
        [False, True, True, True, True],
    ]
    assert batch.rollout_log_probs.tolist() == [[0, 0, -0.5, -0.5, 0], [0, -0.5, -0.5, -0.5, -0.5]]
    assert batch.ref_log_probs[0].tolist() == [-0.25] * 4 + [0.0]
    assert batch.token_rewards[0].tolist() == [0, 1, 2, 3, 0]
    assert batch.token_costs[0].tolist() == [0, -1, -2, -3, 0]
    assert batch.reward.tolist() == [1.0, 2.0]
    assert batch.cost.tolist() == [-1.0, 3.0]
    assert batch.may_be_masked.tolist() == [False, True]


@pytest.mark.parametrize(
    ("truncated", "reward", "num_tokens", "groups"),
    [
        ("as_is", 2.0, 3, [0, 0]),
        ("mask", 0.0, 0, [0, 1]),  # alone in its group, so in nobody's baseline
        (0.5, 1.5, 3, [0, 0]),
    ],
)
def test_what_a_truncated_response_counts_for(truncated, reward, num_tokens, groups):
    batch = collate(
        [
            scored([5], [7, 2]),
            scored([5], [8, 9, 7], reward=2.0, cost=3.0, finish_reason=FinishReason.LENGTH),
        ],
        pad_token_id=0,
        truncated=truncated,
    )
    assert batch.reward.tolist() == [1.0, reward]
    # A penalty is about the end that is missing; what harm was done stays as it is.
    assert batch.cost.tolist() == [-1.0, 3.0 if num_tokens else 0.0]
    assert batch.response_mask.sum(1).tolist() == [2, num_tokens]
    assert batch.prompt_groups.tolist() == groups
    assert batch.token_ids.tolist() == [[5, 7, 2, 0], [5, 8, 9, 7]]


def test_collate_dtypes():
    batch = two_rows()
    assert batch.token_ids.dtype == torch.int64
    assert batch.response_mask.dtype == torch.bool
    assert batch.may_be_masked.dtype == torch.bool
    assert batch.reward.dtype == batch.token_costs.dtype == torch.float32


def test_collate_gates_nothing_by_default():
    rows = [scored([1], [2], category) for category in Category]
    assert collate(rows, pad_token_id=0).may_be_masked.all()


def test_collate_takes_strided_arrays():
    one = scored([5, 6], [7, 2])
    view = np.arange(8, dtype=np.float32)[::2]
    strided = ScoredRollout(
        rollout=one.rollout,
        reward=0.0,
        cost=0.0,
        token_rewards=view,
        token_costs=view[::-1],
        ref_log_probs=view,
    )
    assert collate([strided], pad_token_id=0).token_costs.tolist() == [[6, 4, 2, 0]]


def test_collate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        collate([], pad_token_id=0)


def test_learner_outputs_complete_the_record():
    batch, zeros = two_rows(), torch.zeros(2, 5)
    tokens = batch.with_learner_outputs(
        old_log_probs=zeros - 1, values=zeros + 1, cost_values=zeros + 2
    )
    assert tokens.token_ids is batch.token_ids
    assert tokens.may_be_masked is batch.may_be_masked
    means = [x.mean().item() for x in (tokens.old_log_probs, tokens.values, tokens.cost_values)]
    assert means == [-1, 1, 2]


sizes = st.integers(1, 60)


@given(sizes, sizes, st.integers(0, 99))
def test_minibatches_cover_every_row_once(num_rows, size, seed):
    batches = minibatch_indices(num_rows, size, seed)
    assert sorted(np.concatenate(batches)) == list(range(num_rows))
    assert all(len(batch) == size for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= size


def test_minibatches_are_seeded():
    first, again, other = (np.concatenate(minibatch_indices(50, 8, s)) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@given(sizes, st.integers(1, 8))
def test_shards_of_a_minibatch_are_a_partition_of_even_sizes(num_rows, world_size):
    (rows,) = minibatch_indices(num_rows, num_rows, seed=0)
    shards = [shard_rows(rows, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shards)) == list(range(num_rows))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_shards_by_hand():
    rows = np.array([4, 0, 3, 1, 2])
    assert shard_rows(rows, 0, 2).tolist() == [4, 3, 2]
    assert shard_rows(rows, 1, 2).tolist() == [0, 1]


def test_token_budget_by_hand():
    # budget 10: 9 alone; two of length 5; then 3 and 2 (padded 6)
    batches = token_budget_batches([3, 9, 2, 5, 5], max_tokens=10)
    assert [batch.tolist() for batch in batches] == [[1], [3, 4], [0, 2]]


def test_cuts_that_save_more_padding_than_a_pass_costs():
    # Together 4 x 300 tokens; apart 300 + 3 x 100 and one more pass, which costs 256.
    batches = token_budget_batches([100, 300, 100, 100], max_tokens=5000)
    assert [batch.tolist() for batch in batches] == [[1], [0, 2, 3]]
    # Together 2 x 300; apart 300 + 50 + 256 is more.
    assert len(token_budget_batches([300, 50], max_tokens=5000)) == 1


@given(st.lists(st.integers(0, 600), min_size=1, max_size=9), st.integers(1, 2000))
def test_no_other_cuts_of_the_sorted_rows_are_less_work(lengths, budget):
    def work(batches):
        return sum(PASS_TOKENS + len(b) * max(1, *lengths_of(b)) for b in batches)

    def lengths_of(batch):
        return [0, *(lengths[row] for row in batch)]

    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    every = []
    for cuts in product([False, True], repeat=len(order) - 1):
        batches = [[order[0]]]
        for row, is_cut in zip(order[1:], cuts, strict=True):
            batches.append([row]) if is_cut else batches[-1].append(row)
        if all(len(b) == 1 or len(b) * max(1, *lengths_of(b)) <= budget for b in batches):
            every.append(work(batches))
    assert work(token_budget_batches(lengths, budget)) == min(every)


def test_a_row_longer_than_the_budget_comes_alone():
    assert [b.tolist() for b in token_budget_batches([2, 50, 2], 4)] == [[1], [0, 2]]


@given(st.lists(st.integers(0, 40), max_size=50), st.integers(1, 100))
def test_token_budget_covers_each_row_once_within_the_budget(lengths, budget):
    batches = token_budget_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[row] for row in batch)
        assert padded <= budget or len(batch) == 1
