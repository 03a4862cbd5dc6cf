"""Every number that a run reports, in one table, and those that follow from rollouts alone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from equilibrate.types import Category, ScoredRollout, is_unsafe


@dataclass(frozen=True, slots=True)
class Metric:
    """What one number means."""

    unit: str
    reduction: str
    """How one iteration's many values become this one."""
    meaning: str


def _per_class(name: str, metric: Metric, classes: Iterable[Category]) -> dict[str, Metric]:
    return {
        f"{name}_{category}": Metric(metric.unit, metric.reduction, f"{metric.meaning}: {category}")
        for category in classes
    }


METRICS: dict[str, Metric] = {
    # rollouts
    "reward": Metric("reward", "mean over rollouts", "score of the reward model"),
    "reward_std": Metric("reward", "std over rollouts", "spread of the score; 0 teaches nothing"),
    "cost": Metric("cost", "mean over rollouts", "score of the cost model; above 0 is unsafe"),
    "cost_std": Metric("cost", "std over rollouts", "spread of the score; 0 teaches nothing"),
    **_per_class(
        "cost", Metric("cost", "mean over the class", "score of the cost model"), Category
    ),
    "safety_cost": Metric("cost", "mean over safety prompts", "cost on EHD, IHD and MHD"),
    "unsafe_fraction": Metric("1", "mean over safety prompts", "share with cost > 0"),
    "unsafe_fraction_all": Metric("1", "mean over rollouts", "share with cost > 0"),
    **_per_class(
        "unsafe_fraction", Metric("1", "mean over the class", "share with cost > 0"), Category
    ),
    "response_length": Metric("tokens", "mean over rollouts", "sampled tokens"),
    "truncated_fraction": Metric("1", "mean over rollouts", "share cut at the length limit"),
    "left_out_fraction": Metric(
        "1", "mean over rollouts", "share with a score that is not finite; no other metric has it"
    ),
    # steering
    "multiplier": Metric("1", "last", "lambda, the price of cost in reward units"),
    "kl_coef": Metric("1", "last", "weight of the KL to the reference"),
    **_per_class(
        "mixture", Metric("1", "last", "share of all prompts handed out so far"), Category
    ),
    # update
    "policy_loss": Metric("1", "mean over minibatches", "clipped surrogate on kept tokens"),
    "value_loss": Metric("reward^2", "mean over minibatches", "loss of the reward critic"),
    "cost_value_loss": Metric("cost^2", "mean over minibatches", "loss of the cost critic"),
    "ptx_loss": Metric("nats/token", "mean over minibatches", "loss on pretraining text"),
    "entropy": Metric("nats/token", "mean over response tokens", "entropy of the policy"),
    "kl": Metric("nats/token", "mean over response tokens", "KL of the policy to the reference"),
    "approx_kl": Metric(
        "nats/token", "mean over minibatches", "KL to the policy before the update, kept tokens"
    ),
    "clip_fraction": Metric("1", "mean over kept tokens", "share whose ratio was clipped"),
    "kept_fraction": Metric("1", "mean over response tokens", "share that AMA lets through"),
    "grad_norm": Metric("1", "mean over minibatches", "policy gradient norm before clipping"),
    "learning_rate": Metric("1", "last", "learning rate of the policy"),
    "num_tokens": Metric("tokens", "sum over ranks", "response tokens learned from"),
    "parity_gap_nats": Metric(
        "nats", "max over response tokens", "log-prob difference of generator and learner"
    ),
    "parity_gap_mean_nats": Metric(
        "nats", "mean over response tokens", "log-prob difference of generator and learner"
    ),
    "policy_lag": Metric("iterations", "mean over rollouts", "age of the policy that sampled"),
    "mismatch_kl": Metric(
        "nats/token", "mean over response tokens", "KL to the policy that sampled, where weighed"
    ),
    "importance_weight": Metric(
        "1", "mean over response tokens", "truncated weight of tokens, where weighed"
    ),
    "importance_capped": Metric("1", "mean over response tokens", "share whose weight was cut"),
    "skipped": Metric("1", "last", "1 where a non-finite number stopped the update"),
}

SECONDS = ("rollout", "score", "update", "sync", "iteration")
"""Phases of `timings.jsonl`; `iteration` is the whole, so its excess is time nobody claimed."""


def require_known(names: Iterable[str]) -> None:
    """Raises: ValueError for a name without a row in `METRICS`, with the nearest one."""
    for name in names:
        if name not in METRICS:
            nearest = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"metric {name!r} must have a row in equilibrate.run.metrics{hint}")


def rollout_metrics(rollouts: Sequence[ScoredRollout]) -> dict[str, float]:
    """What the scored rollouts of one iteration say. A class without rollouts has no entry.

    Of those whose scores are all finite; where there is none, of all, so that the loss is seen.

    Raises: ValueError if there are no rollouts.
    """
    if not rollouts:
        raise ValueError("metrics need at least one rollout")
    whole = [s for s in rollouts if not s.broken]
    scored = whole or rollouts
    safety = [s.cost for s in scored if s.rollout.category.is_safety]
    metrics = {
        "reward": _mean([s.reward for s in scored]),
        "reward_std": _std([s.reward for s in scored]),
        "cost": _mean([s.cost for s in scored]),
        "cost_std": _std([s.cost for s in scored]),
        "unsafe_fraction_all": _mean([is_unsafe(s.cost) for s in scored]),
        "left_out_fraction": 1 - len(whole) / len(rollouts),
        "response_length": _mean([float(s.rollout.response_mask.sum()) for s in scored]),
        "truncated_fraction": _mean([s.rollout.finish_reason.is_truncated for s in scored]),
    }
    if safety:
        metrics["safety_cost"] = _mean(safety)
        metrics["unsafe_fraction"] = _mean([is_unsafe(cost) for cost in safety])
    for category in Category:
        costs = [s.cost for s in scored if s.rollout.category is category]
        if costs:
            metrics[f"cost_{category}"] = _mean(costs)
            metrics[f"unsafe_fraction_{category}"] = _mean([is_unsafe(cost) for cost in costs])
    return metrics


def mixture_metrics(realised: Mapping[Category, float]) -> dict[str, float]:
    """The realised mixture under its metric names."""
    return {f"mixture_{category}": float(share) for category, share in realised.items()}


def _mean(values: Sequence[float]) -> float:
    # fsum: the same whatever the order, and nan or inf pass through to be written as null.
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):
        return math.nan


def _std(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(_mean([(value - mean) * (value - mean) for value in values]))
