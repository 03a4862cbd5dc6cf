"""Which rows make which batch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.offline.batches import plan_batches


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    batch_size=st.integers(1, 16),
    num_batches=st.integers(1, 100),
)
def test_batches_are_full_and_each_row_comes_equally_often(lengths, batch_size, num_batches):
    batches = plan_batches(
        np.array(lengths), batch_size=batch_size, num_batches=num_batches, seed=3
    )
    assert [len(batch) for batch in batches] == [batch_size] * num_batches
    counts = np.bincount(np.concatenate(batches), minlength=len(lengths))
    assert counts.max() - counts.min() <= 1


def test_the_seed_fixes_the_batches():
    def plan(seed):
        lengths = np.arange(300) % 17 + 1
        return np.concatenate(plan_batches(lengths, batch_size=4, num_batches=100, seed=seed))

    assert plan(1).tolist() == plan(1).tolist()
    assert plan(1).tolist() != plan(2).tolist()


def test_batches_waste_little_and_are_no_curriculum():
    lengths = np.random.default_rng(0).integers(10, 40, size=4096)
    batches = plan_batches(lengths, batch_size=32, num_batches=128, seed=0)
    padded = sum(lengths[batch].max() * 32 for batch in batches)
    # 30 lengths over 64 sorted batches: most batches hold one or two neighbouring lengths.
    assert padded / lengths.sum() < 1.03
    means = np.array([lengths[batch].mean() for batch in batches[:64]])
    assert abs(np.corrcoef(means, np.arange(64))[0, 1]) < 0.3
