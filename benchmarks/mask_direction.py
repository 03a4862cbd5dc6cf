"""What a mask does to the gradient of offline training: does it turn it, or only lengthen it?

With g the gradient of the preference loss without a mask and m the one with it, over examples of
the classes that the mask touches:

    cosine = <m, g> / (|m| |g|)     1: the same direction; the mask does what a weight would do
    length = |m| / |g|              which weight

Beside it as many tokens drawn at random: what a mask of this share does by chance. The cosine of
two halves of the examples, without a mask, says how far another sample of examples turns it.

    python -m benchmarks.mask_direction runs/adpo --policy runs/adpo/stages/base-KEY
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import positive
from equilibrate.config.files import load_settings
from equilibrate.config.fit import AnswerMaskConfig, DpoConfig, FitConfig
from equilibrate.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from equilibrate.models.loading import PolicyModel
    from equilibrate.offline.table import AnswerTable, Rows

ANSWERS = "answers-*"
CREDITS = {"reward": ("token_rewards",), "cost": ("token_costs",)}
"""Scores that a mask of this source reads; of another source both."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run of `fit` with a mask")
    parser.add_argument("--policy", type=Path, required=True, help="where the gradient is taken")
    parser.add_argument("--answers", type=Path, help="default: the one of the run's stages")
    parser.add_argument(
        "--examples", type=positive, default=1024, help="at most, at random; 2 at least"
    )
    parser.add_argument("--threads", type=positive, default=1, help="of torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("overrides", nargs="*", help="of the run's settings, key=value")
    arguments = parser.parse_intermixed_args(argv)
    rows = measure(arguments)
    for row in rows:
        print(f"{row['mask']:<8} kept {row['kept_fraction']:.2f}  cosine {row['cosine']:.3f}"
              f"  length {row['length']:.2f}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the mask, of the random one and of the halves."""
    import numpy as np
    import torch

    from equilibrate.models.device import Accelerator
    from equilibrate.models.loading import load_policy
    from equilibrate.offline.table import load_answers

    torch.set_num_threads(arguments.threads)
    config = load_settings(FitConfig, [arguments.run / "config.yaml"], arguments.overrides)
    if config.ama is None:
        config = config.model_copy(update={"ama": AnswerMaskConfig()})
    table = load_answers(arguments.answers or _only_answers(arguments.run))
    _require_credits(table, config, arguments.run)
    touched = masked_examples(table, config)
    order = np.random.default_rng(config.seed).permutation(touched)[: max(2, arguments.examples)]
    policy = load_policy(arguments.policy, Accelerator("cpu", "float32"))
    return compare_masks(policy, table, order, config)


def masked_examples(table: AnswerTable, config: FitConfig) -> Rows:
    """Numbers of the examples whose class the mask touches.

    Raises: ConfigError if there are fewer than two.
    """
    import numpy as np

    assert config.ama is not None
    first = np.arange(len(table)) * table.answers_per_example
    examples = np.flatnonzero(table.is_masked(first, config.ama.ungated))
    if len(examples) < 2:
        raise ConfigError(f"ama.ungated leaves {len(examples)} examples to mask; at least 2 needed")
    return examples


def compare_masks(
    policy: PolicyModel, table: AnswerTable, examples: Rows, config: FitConfig
) -> list[dict[str, Any]]:
    """The gradient over `examples` with a mask, with a random one, and of halves, against none."""
    config = _without_nll(config)
    half = len(examples) // 2
    plain = [
        gradient(policy, table, part, config.model_copy(update={"ama": None}))[0]
        for part in (examples[:half], examples[half:])
    ]
    whole, _ = gradient(policy, table, examples, config.model_copy(update={"ama": None}))
    assert config.ama is not None
    random = config.ama.model_copy(update={"random_control": True})
    rows = []
    for name, ama in (("mask", config.ama), ("random", random)):
        masked, kept = gradient(policy, table, examples, config.model_copy(update={"ama": ama}))
        rows.append(_row(name, kept, masked, whole))
    return [*rows, _row("halves", 1.0, plain[0], plain[1])]


def gradient(
    policy: PolicyModel, table: AnswerTable, examples: Rows, config: FitConfig
) -> tuple[Tensor, float]:
    """Of the mean loss over examples, flat and float64, and the share of tokens that is kept."""
    import numpy as np
    import torch

    from equilibrate.offline.policy_loss import PolicyLoss
    from equilibrate.ppo.batches import dealt_passes

    objective = PolicyLoss(table, config, torch.device("cpu"))
    masks = objective.plan(examples)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    total = [torch.zeros_like(weight) for weight in weights]
    passes = dealt_passes(
        np.arange(len(examples)),
        table.example_lengths[examples],
        rank=0,
        world_size=1,
        max_tokens=config.trainer.max_tokens_per_batch,
    )
    for places in passes:
        # Only ever called, as a learner's policy is.
        loss = objective.loss(policy, masks, np.sort(places))  # type: ignore[arg-type]
        parts = torch.autograd.grad(loss, weights, allow_unused=True)
        for whole, part in zip(total, parts, strict=True):
            if part is not None:
                whole += part
    num_tokens = masks.positive.tokens + masks.negative.tokens
    flat = torch.cat([whole.flatten() for whole in total]).double()
    return flat, int(masks.gradient_mask.sum()) / max(1, num_tokens)


def _require_credits(table: AnswerTable, config: FitConfig, run: Path) -> None:
    """Scores are 0 where a run had no use for them: such a mask would keep every answer whole."""
    assert config.ama is not None
    for name in CREDITS.get(config.ama.source, (*CREDITS["reward"], *CREDITS["cost"])):
        if name not in table.scores or not table.scores[name].any():
            raise DataError(
                f"{run}: its answers have no {name}, which ama.source={config.ama.source} reads; "
                "give a run with such a mask"
            )


def _row(name: str, kept: float, masked: Tensor, whole: Tensor) -> dict[str, Any]:
    lengths = float(masked.norm()), float(whole.norm())
    if not all(lengths):
        raise DataError(f"{name}: a gradient of 0 has no direction; give more examples")
    return {
        "mask": name,
        "kept_fraction": kept,
        "cosine": float(masked @ whole) / (lengths[0] * lengths[1]),
        "length": lengths[0] / lengths[1],
    }


def _without_nll(config: FitConfig) -> FitConfig:
    """The cross entropy of a chosen answer is on all its tokens, whatever the mask."""
    if not isinstance(config.objective, DpoConfig):
        return config
    return config.model_copy(
        update={"objective": config.objective.model_copy(update={"nll_coef": 0.0})}
    )


def _only_answers(run: Path) -> Path:
    found = sorted((run / "stages").glob(ANSWERS))
    if len(found) != 1:
        raise DataError(f"{run / 'stages'}: {len(found)} folders {ANSWERS}; name one by --answers")
    return found[0]


if __name__ == "__main__":
    main()
