"""Step times that others published, with the sizes they ran; the figures are in published.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from equilibrate.planner.costs import Costs
from equilibrate.planner.hardware import GPUS, Efficiency
from equilibrate.planner.workload import LENGTH_SIGMA, Lengths, Model, Placement, Workload

PATH = Path(__file__).with_name("published.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published step time."""

    name: str
    source: str
    gpu: str
    workload: Workload
    placement: Placement
    step_seconds: float

    def costs(self, efficiency: Efficiency) -> Costs:
        return Costs(GPUS[self.gpu], efficiency, self.workload, self.placement)


@dataclass(frozen=True, slots=True)
class Unmodelled:
    """Published, but without a quantity that the model needs."""

    source: str
    what: str
    step_seconds: str
    missing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    models: dict[str, Model]
    rows: list[Row]
    """Constants are fitted on these."""
    held_out: list[Row]
    """Never fitted on."""
    not_modelled: list[Unmodelled]
    sources: dict[str, dict[str, str]]


@cache
def read(sigma: float = LENGTH_SIGMA, path: Path = PATH) -> Published:
    data = json.loads(path.read_text())
    models = {entry["name"]: Model(**entry) for entry in data["models"]}
    return Published(
        models=models,
        rows=[_row(entry, models, sigma) for entry in data["rows"]],
        held_out=[_row(entry, models, sigma) for entry in data["held_out"]],
        not_modelled=[Unmodelled(**entry) for entry in data["not_modelled"]],
        sources=data["sources"],
    )


def _row(entry: dict[str, Any], models: dict[str, Model], sigma: float) -> Row:
    split, gpus, lag = entry["rollout_gpus"], entry["gpus"], entry["max_policy_lag"]
    longest = entry["sequence_limit"] - entry["prompt_tokens"]
    return Row(
        name=f"{entry['model']}, {gpus} {entry['gpu']}, lag {lag}",
        source=entry["source"],
        gpu=entry["gpu"],
        workload=Workload(
            model=models[entry["model"]],
            num_rollouts=entry["rollouts"],
            prompt_tokens=entry["prompt_tokens"],
            lengths=Lengths(mean=entry["response_mean"], longest=longest, sigma=sigma),
            num_updates=entry["rollouts"] // entry["optimizer_batch"],
            scoring_passes=entry["scoring_passes"],
            recompute=entry["recompute"],
        ),
        placement=Placement(
            rollout_gpus=split or gpus,
            train_gpus=gpus - split if split else gpus,
            colocated=split is None,
            rollout_tp=entry["rollout_tp"],
            train_tp=entry["train_tp"],
            train_pp=entry["train_pp"],
            train_cp=entry["train_cp"],
            train_ep=entry["train_ep"],
            memory_fraction=entry["memory_fraction"],
            max_policy_lag=lag,
        ),
        step_seconds=entry["step_seconds"],
    )
