"""PPO-Lagrangian with adapters, a two-headed scorer and a two-headed critic against models apart.

Scoring and update of one iteration, one rank, same process and threads. For N weights a token costs
2 N in a forward pass and as much again in each of the two halves of a backward pass. Apart: the
reference, reward and cost score (6 N), policy and two critics say what they do before (6 N) and all
three are trained whole (18 N): 30 N. On one trunk: the reference and a scorer (4 N), policy and
critic before (4 N), and both trained by adapters, which leaves out the gradients of weights (8 N):
16 N. So the ratio cannot be above 30/16.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.adapters import adapter_parser, learner_settings, random_scores, state_bytes
from benchmarks.harness import (
    Quartiles,
    Result,
    become_rank,
    free_port,
    measure_pairs,
    publish,
    settings_of,
)
from benchmarks.update import STEER

LARGEST_RATIO = 30 / 16


def main(argv: Sequence[str] | None = None) -> None:
    arguments = adapter_parser(__doc__).parse_args(argv)
    publish(measure(arguments), arguments.json)


def measure(arguments: argparse.Namespace) -> Result:
    import torch

    become_rank(0, 1, free_port())
    rollouts = [scored.rollout for scored in random_scores(arguments)]
    with TemporaryDirectory() as folder:
        reward, cost, both = _write_scorers(Path(folder), arguments.model)
        apart = Roles(arguments, 0, (reward, cost))
        one_trunk = Roles(arguments, arguments.rank, (both, both), two_headed_critic=True)
        pairs = measure_pairs(
            lambda number: one_trunk.iterate(rollouts, number),
            lambda number: apart.iterate(rollouts, number),
            repeats=arguments.repeats,
            warmups=arguments.warmups,
        )
    torch.distributed.destroy_process_group()
    ratio = Quartiles.of(pairs.ratios)
    return Result(
        name="one_trunk",
        ratio=ratio,
        reference="six models, all weights trained",
        limit_fraction=ratio.median / LARGEST_RATIO,
        config=settings_of(arguments),
        details={
            "seconds": Quartiles.of(pairs.ours).median,
            "apart_seconds": Quartiles.of(pairs.reference).median,
            "num_tokens": sum(len(one.token_ids) for one in rollouts),
            "learner_bytes": state_bytes(one_trunk.learner),
            "apart_learner_bytes": state_bytes(apart.learner),
        },
    )


class Roles:
    """All that reads or learns from rollouts in a run."""

    def __init__(
        self, arguments: argparse.Namespace, rank: int, scorers: tuple[str, str], **learner: Any
    ) -> None:
        from actors.learner import LearnerWorker
        from equilibrate.learning.scoring import ScoringWorker

        self.scoring = ScoringWorker(
            reward=scorers[0],
            cost=scorers[1],
            reference=str(arguments.model),
            device="cpu",
            dtype=arguments.dtype,
            cpu_threads=arguments.threads,
            max_tokens_per_batch=arguments.max_tokens,
            temperature=1.0,
        )
        self.learner = LearnerWorker(learner_settings(arguments, rank, scorers=scorers, **learner))

    def iterate(self, rollouts: Sequence[Any], number: int) -> None:
        scored = self.scoring.score(rollouts)
        if self.learner.update(scored, iteration=number, **STEER).skipped:
            raise RuntimeError("the update was skipped: a number was not finite")


def _write_scorers(folder: Path, policy: Path) -> tuple[str, str, str]:
    """A reward model, a cost model, and one that is both."""
    from equilibrate.models.device import Accelerator
    from equilibrate.models.new_scorer import new_twin_scorer
    from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
    from equilibrate.text.renderer import load_tokenizer
    from equilibrate.types import ScorerKind

    kinds: dict[str, tuple[ScorerKind, ...]] = {
        "reward": ("reward",),
        "cost": ("cost",),
        "both": ("reward", "cost"),
    }
    tokenizer, cpu = load_tokenizer(policy), Accelerator("cpu", "float32")
    for seed, (name, heads) in enumerate(kinds.items()):
        pad = tokenizer.pad_token_id
        scorer = new_twin_scorer(policy, heads, cpu, seed=seed, pad_token_id=pad)
        scorer.model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        write_sidecar(folder / name, *(ScorerSidecar(kind=kind) for kind in heads))
    reward, cost, both = (str(folder / name) for name in kinds)
    return reward, cost, both


if __name__ == "__main__":
    main()
