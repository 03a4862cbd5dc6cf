"""The stubs keep the contracts of real workers; growth by hand."""

import numpy as np

from benchmarks.driver_cost import NoCheckpoints, growth
from benchmarks.stubs import StubWorker
from equilibrate.types import Category, RolloutRequest

REQUESTS = [
    RolloutRequest(
        prompt_id=f"p{i}", copy=0, category=Category.EHD, token_ids=(1,) * (i + 1), seed=i
    )
    for i in range(3)
]


def test_growth_is_most_over_fewest_whatever_the_order() -> None:
    assert growth({64: 0.03, 1: 0.01, 8: 0.5}) == 0.03 / 0.01


def test_stubs_answer_like_workers() -> None:
    seconds = dict.fromkeys(("rollout", "score", "update", "sync"), 0.0)
    stub = StubWorker(seconds, response_tokens=4, weight_bytes=10)
    rollouts = stub.generate(REQUESTS, policy_version=5)
    assert [r.prompt_id for r in rollouts] == ["p0", "p1", "p2"]
    assert [len(r.token_ids) for r in rollouts] == [5, 6, 7]
    assert all(r.response_mask.sum() == 4 and r.policy_version == 5 for r in rollouts)
    scored = stub.score(rollouts)
    assert [s.rollout for s in scored] == rollouts
    assert not stub.update(scored, iteration=0, multiplier=1.0, kl_coef=0.1).skipped
    weights, receipt = stub.pack_weights()
    assert isinstance(weights, np.ndarray)
    assert (weights.nbytes, receipt) == (10, 0)


def test_the_loop_goes_on_where_it_stopped() -> None:
    checkpoints = NoCheckpoints()
    assert checkpoints.restore() == 0
    checkpoints.save(3)
    assert checkpoints.restore() == 3
