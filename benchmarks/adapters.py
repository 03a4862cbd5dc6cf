"""LearnerWorker.update of an adapter against the same update of all weights.

One rank, same process and threads, a policy without critics. A token costs a product with every
weight in the pass before the update, another in the forward pass and two in the backward pass, one
where only an adapter is trained: gradients of activations, none of weights. So the ratio cannot be
above 4/3 (3/2 without the pass before). Peaks are of tensors, from the loaded model on: weights,
gradients, Adam's moments and the worst moment of an update.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import (
    Quartiles,
    Result,
    become_rank,
    free_port,
    make_parser,
    measure_pairs,
    publish,
    settings_of,
)
from benchmarks.update import STEER

LARGEST_RATIO = 4 / 3


def main(argv: Sequence[str] | None = None) -> None:
    arguments = adapter_parser(__doc__).parse_args(argv)
    publish(measure(arguments), arguments.json)


def adapter_parser(description: str | None) -> argparse.ArgumentParser:
    parser = make_parser(description)
    parser.add_argument("--model", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="rollouts of one update")
    parser.add_argument("--max-tokens", type=int, default=2048, help="of one backward, padded")
    parser.add_argument(
        "--response-tokens", type=int, default=128, help="longest; the least is 1/4"
    )
    return parser


def measure(arguments: argparse.Namespace) -> Result:
    import torch

    from actors.learner import LearnerWorker
    from equilibrate.planner.peak import peak_bytes

    become_rank(0, 1, free_port())
    scored = random_scores(arguments)
    adapter, full = (
        LearnerWorker(learner_settings(arguments, rank)) for rank in (arguments.rank, 0)
    )

    def update(worker: Any, number: int) -> None:
        if worker.update(scored, iteration=number, **STEER).skipped:
            raise RuntimeError("the update was skipped: a number was not finite")

    states, peaks = [], []
    for worker in (adapter, full):
        update(worker, 0)  # Adam's moments are there from now on
        states.append(state_bytes(worker))
        peaks.append(states[-1] + peak_bytes(partial(update, worker, 1)))
    pairs = measure_pairs(
        lambda number: update(adapter, number + 2),
        lambda number: update(full, number + 2),
        repeats=arguments.repeats,
        warmups=arguments.warmups,
    )
    torch.distributed.destroy_process_group()
    ratio = Quartiles.of(pairs.ratios)
    return Result(
        name="adapters",
        ratio=ratio,
        reference="the same update of all weights",
        limit_fraction=ratio.median / LARGEST_RATIO,
        config=settings_of(arguments),
        details={
            "seconds": Quartiles.of(pairs.ours).median,
            "full_seconds": Quartiles.of(pairs.reference).median,
            "num_tokens": sum(len(one.rollout.token_ids) for one in scored),
            "state_bytes": states[0],
            "full_state_bytes": states[1],
            "peak_bytes": peaks[0],
            "full_peak_bytes": peaks[1],
            "peak_share": peaks[0] / peaks[1],
        },
    )


def learner_settings(
    arguments: argparse.Namespace, rank: int, *, scorers: tuple[str, str] = ("", ""), **more: Any
) -> Any:
    """Of a policy that is trained whole (rank 0) or by an adapter.

    Args:
        scorers: with which critics begin; without them there are none.
        more: settings of the learner.
    """
    from actors.learner import LearnerSettings
    from equilibrate.config.base import TextConfig
    from equilibrate.config.train import LearnerConfig, PPOConfig

    learner: dict[str, Any] = {"max_tokens_per_batch": arguments.max_tokens, **more}
    if rank:
        learner["adapter"] = {"rank": rank, "alpha": 2 * rank}
    return LearnerSettings(
        policy=str(arguments.model),
        reward=scorers[0],
        cost=scorers[1],
        ptx="",
        device="cpu",
        dtype=arguments.dtype,
        cpu_threads=arguments.threads,
        seed=0,
        iterations=1_000_000,
        temperature=1.0,
        text=TextConfig(),
        max_length=512,
        # The same rollouts serve every round, while the policy moves away from them.
        parity_tolerance=math.inf,
        learner=LearnerConfig.model_validate(learner),
        # Two steps: a single one would take the pass before for its own.
        ppo=PPOConfig(
            minibatch_size=arguments.batch // 2,
            advantage="gae" if scorers[0] else "reinforce_plus_plus",
        ),
        ama=None,
    )


def random_scores(arguments: argparse.Namespace) -> list[Any]:
    """Random answers with random scores."""
    from benchmarks.workloads import make_prompts, make_rollouts
    from equilibrate.models.folders import read_config
    from equilibrate.types import ScoredRollout

    rng = np.random.default_rng(0)
    rollouts = make_rollouts(
        make_prompts(str(arguments.model), arguments.batch),
        vocabulary=int(read_config(arguments.model)["vocab_size"]),
        min_tokens=max(1, arguments.response_tokens // 4),
        max_tokens=arguments.response_tokens,
    )
    found = []
    for rollout in rollouts:
        nothing = np.zeros(len(rollout.token_ids), np.float32)
        reward, cost = rng.normal(size=2)
        scores = {"token_rewards": nothing, "token_costs": nothing, "ref_log_probs": nothing - 10}
        found.append(ScoredRollout(rollout=rollout, reward=reward, cost=cost, **scores))
    return found


def state_bytes(worker: Any) -> int:
    """Weights, the gradients of trained ones, and what Adam keeps, of all its models."""
    held: dict[int, int] = {}
    for model in worker._models.values():
        for parameter in model.module.parameters():
            kept = 4 if parameter.requires_grad else 1
            held[parameter.data_ptr()] = kept * parameter.numel() * parameter.element_size()
    return sum(held.values())


if __name__ == "__main__":
    main()
