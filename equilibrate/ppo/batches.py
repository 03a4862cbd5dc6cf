"""From a list of rollouts to padded tensors, and from row numbers to minibatches and shards."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilibrate.config.train import Truncated
from equilibrate.types import Category, ScoredRollout, TokenBatch

Indices = NDArray[np.int64]

PASS_TOKENS = 256
"""What a pass costs however few tokens it has, in tokens. Measured with 3.5 M parameters on two
cores: of 64, 128, 256 and 512, 128 is best in float32 and 512 in bfloat16, by a tenth at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """Scored rollouts, right-padded to [B, T]: a `TokenBatch` before the learner's forward pass.

    Fields as in `TokenBatch`. Padding holds `pad_token_id`, False and 0.
    """

    token_ids: Tensor
    response_mask: Tensor
    rollout_log_probs: Tensor
    ref_log_probs: Tensor
    token_rewards: Tensor
    token_costs: Tensor
    reward: Tensor
    cost: Tensor
    may_be_masked: Tensor
    prompt_groups: Tensor

    def with_learner_outputs(
        self, *, old_log_probs: Tensor, values: Tensor, cost_values: Tensor
    ) -> TokenBatch:
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        return TokenBatch(
            **mine, old_log_probs=old_log_probs, values=values, cost_values=cost_values
        )


def collate(
    rollouts: Sequence[ScoredRollout],
    *,
    pad_token_id: int,
    ungated: Collection[Category] = (),
    truncated: Truncated = "as_is",
) -> ScoredBatch:
    """Pad rollouts on the right to the longest one.

    Args:
        rollouts: at least one; prompts and responses of any lengths.
        pad_token_id: filler of `token_ids`, which may hold it as a token too.
        ungated: classes whose rows AMA leaves alone (`may_be_masked` False).
        truncated: what responses that were cut at the limit count for, see `PPOConfig`.
    Returns: tensors on the CPU; int64 ids, bool masks, float32 numbers. A rollout that is left
        out, for a score that is not finite or for its cut, keeps its row, so that minibatches are
        equally large on all ranks, and counts nowhere: it has no response token and no score, and
        is alone in its group.
    Raises: ValueError if there is no rollout.
    """
    if not rollouts:
        raise ValueError("collate needs at least one rollout")
    rollouts = [_as_learned(scored, truncated) for scored in rollouts]
    plain = [scored.rollout for scored in rollouts]
    return ScoredBatch(
        token_ids=_pad([r.token_ids for r in plain], pad_token_id),
        response_mask=_pad([r.response_mask for r in plain], False),
        rollout_log_probs=_pad([r.rollout_log_probs for r in plain], 0.0),
        ref_log_probs=_pad([s.ref_log_probs for s in rollouts], 0.0),
        token_rewards=_pad([s.token_rewards for s in rollouts], 0.0),
        token_costs=_pad([s.token_costs for s in rollouts], 0.0),
        reward=torch.tensor([s.reward for s in rollouts], dtype=torch.float32),
        cost=torch.tensor([s.cost for s in rollouts], dtype=torch.float32),
        may_be_masked=torch.tensor([r.category not in ungated for r in plain]),
        prompt_groups=torch.tensor(
            _numbered([r.prompt_id if r.response_mask.any() else i for i, r in enumerate(plain)])
        ),
    )


def _as_learned(scored: ScoredRollout, truncated: Truncated) -> ScoredRollout:
    if scored.broken:
        return _silenced(scored)
    if truncated == "as_is" or not scored.rollout.finish_reason.is_truncated:
        return scored
    if truncated == "mask":
        return _silenced(scored)
    return replace(scored, reward=scored.reward - truncated)


def _silenced(scored: ScoredRollout) -> ScoredRollout:
    rollout = scored.rollout
    nothing = np.zeros(len(rollout.token_ids), np.float32)
    return ScoredRollout(
        rollout=replace(rollout, response_mask=np.zeros_like(rollout.response_mask)),
        reward=0.0,
        cost=0.0,
        token_rewards=nothing,
        token_costs=nothing,
        ref_log_probs=nothing,
    )


def _numbered(names: Sequence[Hashable]) -> list[int]:
    """The same number for the same name, in order of first appearance."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def minibatch_indices(num_rows: int, minibatch_size: int, seed: int) -> list[Indices]:
    """A seeded permutation of all rows, cut into minibatches (the last may be smaller).

    The permutation is global: every rank draws the same one and takes its part with `shard_rows`,
    so that the rows of a minibatch do not depend on the number of ranks.
    """
    order = np.random.default_rng(seed).permutation(num_rows)
    return [order[i : i + minibatch_size] for i in range(0, num_rows, minibatch_size)]


def shard_rows(indices: Indices, rank: int, world_size: int) -> Indices:
    """The part of one rank: rows rank, rank + world_size, ... of the minibatch."""
    return indices[rank::world_size]


def token_budget_batches(lengths: Sequence[int], max_tokens: int) -> list[Indices]:
    """Row numbers in batches of at most `max_tokens` padded tokens, one batch a pass of a model.

    Rows are sorted, longest first, so that similar lengths share a batch. Of all ways to cut them,
    the one with the least work: padded tokens, and `PASS_TOKENS` a batch.
    Every row comes exactly once; a row longer than the budget comes alone.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    num_rows = len(order)
    # work[i]: least for the rows from the i-th longest on; ends[i]: where their first batch ends.
    work, ends = np.zeros(num_rows + 1), np.zeros(num_rows, np.int64)
    for start in reversed(range(num_rows)):
        longest = max(1, int(sizes[order[start]]))
        most = min(max(1, max_tokens // longest), num_rows - start)
        # Fullest first: it wins where several are equal.
        rows = np.arange(most, 0, -1)
        totals = PASS_TOKENS + rows * longest + work[start + rows]
        best = int(totals.argmin())
        work[start], ends[start] = totals[best], start + rows[best]
    batches: list[Indices] = []
    start = 0
    while start < num_rows:
        batches.append(order[start : ends[start]])
        start = int(ends[start])
    return batches


def _pad(rows: Sequence[NDArray[Any]], filler: int | float | bool) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(np.ascontiguousarray(row)) for row in rows],
        batch_first=True,
        padding_value=filler,
    )


def passes_of_rank(
    rows: Indices, lengths: Indices, *, rank: int, world_size: int, max_tokens: int
) -> list[Indices]:
    """A rank's share of the rows, similar lengths together, within the budget of padded tokens.

    Rows are dealt by length, so ranks have about equally many tokens, and the cuts that suit the
    first rank, which gets the longest row of every deal, suit all: ZeRO needs equally many passes
    on every rank.

    Args:
        rows: equally many for every rank.
        lengths: of all rows, by their number.
    """
    by_length = rows[np.argsort(-lengths[rows], kind="stable")]
    own, longest = (shard_rows(by_length, one, world_size) for one in (rank, 0))
    cuts = token_budget_batches(lengths[longest].tolist(), max_tokens)
    return [own[cut] for cut in cuts]
