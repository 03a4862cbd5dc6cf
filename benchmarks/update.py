"""LearnerWorker.update against a bare PyTorch loop that does the same maths.

One rank, same process and threads. Both run three models over the same micro-batches: a pass
before the update, targets from the same functions, fused AdamW with clipped gradients. The bare
loop leaves out what makes an update safe and visible: DeepSpeed, checks for non-finite numbers,
parity with the generator, and metrics. Both start from the same weights and must still agree after
one update.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness import (
    Quartiles,
    Result,
    RoofWatch,
    become_rank,
    free_port,
    make_parser,
    measure_pairs,
    publish,
    settings_of,
)
from benchmarks.limits import pass_flops, shape_of

NUM_MODELS = 3
STEER = {"multiplier": 1.0, "kl_coef": 0.02}
RATE = 1e-4
SAME_WEIGHTS = 0.1 * RATE
"""A tenth of one step of Adam: the largest difference in float32, the mean one in bfloat16, where
rounding decides the sign of small gradients."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=64, help="rollouts of one update")
    parser.add_argument("--minibatch", type=int, default=32, help="rollouts of one step")
    parser.add_argument("--max-tokens", type=int, default=2048, help="of one backward, padded")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--response-tokens", type=int, default=32, help="longest; the least is 1/4")
    parser.add_argument("--model", type=Path, help="folder of the policy; default: built-in, toy")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args(argv)
    if arguments.epochs == 1 and arguments.minibatch >= arguments.batch:
        parser.error("--minibatch must be below --batch: a single step has no pass before it")
    publish(measure(arguments), arguments.json)


def measure(arguments: argparse.Namespace) -> Result:
    import torch

    from benchmarks.workloads import (
        make_prompts,
        make_rollouts,
        score_rollouts,
        write_like,
        write_models,
    )

    become_rank(0, 1, free_port())
    with TemporaryDirectory() as folder:
        models = (
            write_like(arguments.model, Path(folder))
            if arguments.model
            else write_models(Path(folder))
        )
        rollouts = make_rollouts(
            make_prompts(models.policy, arguments.batch),
            vocabulary=_vocabulary_size(models.policy),
            min_tokens=max(1, arguments.response_tokens // 4),
            max_tokens=arguments.response_tokens,
        )
        scored = score_rollouts(models, rollouts, arguments.threads)
        result = _compare(scored, _settings(asdict(models), arguments), arguments)
    torch.distributed.destroy_process_group()
    return result


def _compare(scored: Sequence[Any], settings: Any, arguments: argparse.Namespace) -> Result:
    from actors.learner import LearnerWorker
    from benchmarks.bare_update import BareLearner

    worker, bare = LearnerWorker(settings), BareLearner(settings)

    def ours(number: int) -> None:
        update = worker.update(scored, iteration=number, **STEER)
        if update.skipped or not update.values["kept_fraction"]:
            raise RuntimeError("the policy was not trained: less work than the bare loop does")

    def reference(number: int) -> None:
        bare.update(scored, iteration=number, **STEER)

    shape = shape_of(settings.policy)
    num_tokens = sum(len(s.rollout.token_ids) for s in scored)
    rows = num_tokens * arguments.minibatch // arguments.batch
    watch = RoofWatch(shape.gemm_shapes(rows), arguments.dtype)
    # The first warm-up comes apart: after one update the two must hold the same weights.
    ours(0)
    reference(0)
    difference = _difference(worker, bare, mean=settings.dtype == "bfloat16")
    if difference > SAME_WEIGHTS:
        raise RuntimeError(f"weights differ by {difference:.1e} after one update: other maths")
    pairs = measure_pairs(
        lambda number: ours(number + 1),
        lambda number: reference(number + 1),
        repeats=arguments.repeats,
        warmups=max(0, arguments.warmups - 1),
    )
    roof, about_roof = watch.finish()
    passes = {"forwards": NUM_MODELS, "trainings": NUM_MODELS * arguments.epochs}
    flops = pass_flops(shape.num_parameters, num_tokens, **passes)
    limit, seconds = flops / roof.flops_per_second, Quartiles.of(pairs.ours)
    return Result(
        name="update",
        ratio=Quartiles.of(pairs.ratios),
        reference="a bare PyTorch loop of the same maths",
        limit_fraction=limit / seconds.median,
        config=settings_of(arguments) | {"num_parameters": shape.num_parameters},
        details={
            "seconds": seconds.median,
            "bare_seconds": Quartiles.of(pairs.reference).median,
            "limit_seconds": limit,
            "flops": flops,
            "num_tokens": num_tokens,
            "weight_difference": difference,
            "roof": about_roof,
        },
    )


def _vocabulary_size(policy: str) -> int:
    from equilibrate.models.skeleton import skeleton

    return int(skeleton(policy, "policy").config.vocab_size)


def _settings(models: dict[str, str], arguments: argparse.Namespace) -> Any:
    from actors.learner import LearnerSettings
    from equilibrate.config.base import TextConfig
    from equilibrate.config.train import AmaConfig, LearnerConfig, PPOConfig

    return LearnerSettings(
        **models,
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
        learner=LearnerConfig(
            max_tokens_per_batch=arguments.max_tokens, policy_lr=RATE, critic_lr=RATE
        ),
        ppo=PPOConfig(minibatch_size=arguments.minibatch, epochs=arguments.epochs),
        ama=AmaConfig(),
    )


def _difference(worker: Any, bare: Any, *, mean: bool) -> float:
    """Between the parameters of the policies: the largest, or the mean one."""
    from actors.engine import model_weights

    theirs = dict(bare.policy.named_parameters())
    found = [
        np.abs((tensor - theirs[name].detach()).numpy())
        for name, tensor in model_weights(worker._models["policy"])
    ]
    if mean:
        return float(sum(one.sum() for one in found) / sum(one.size for one in found))
    return max(float(one.max()) for one in found)


if __name__ == "__main__":
    main()
