"""A small made-up study: three arms, two of them on a curve and a front, and results by hand."""

from __future__ import annotations

import copy
from typing import Any

from equilibrate.config.files import parse_settings
from equilibrate.config.formats import SETTINGS_FORMAT
from equilibrate.config.study import StudyConfig
from equilibrate.evaluation import Estimate, EvaluationTable
from equilibrate.study import PlannedRun, RunResult, expand, plan_runs

TREE: dict[str, Any] = {
    "name": "amounts",
    "output": "runs/studies/amounts",
    "results": "docs/results/amounts.jsonl",
    "seeds": [0, 1, 2, 3, 4],
    "common": {"train": {"ppo": {"epochs": 2}}},
    "arms": {
        "few": {"kind": "train", "set": {"rows": 10}, "x": 10},
        "many": {"kind": "train", "set": {"rows": 100}, "x": 100, "label": "many rows"},
        "offline": {"kind": "fit"},
    },
    "questions": [
        {
            "id": "Q1",
            "title": "How much data?",
            "text": "More rows, less harm.",
            "x_label": "rows",
            "log_x": True,
            "lines": {"PPO": ["few", "many"]},
            "fronts": {"PPO": ["few", "many"], "offline": ["offline"]},
            "figures": ["harm", "training.kept_fraction"],
            "claims": [
                {
                    "text": "More rows lower harm",
                    "figure": "harm",
                    "of": "many",
                    "against": "few",
                    "expect": "lower",
                },
                {
                    "text": "PPO has the better front",
                    "front": ["harm", "over_refusal"],
                    "of": ["few", "many"],
                    "against": "offline",
                    "expect": "higher",
                    "margin": 0.02,
                    "note": "area under the front",
                },
            ],
        }
    ],
}


def tree(**changes: Any) -> dict[str, Any]:
    """The study as it would be written, with other values at its top."""
    return {**copy.deepcopy(TREE), **changes}


def study(**changes: Any) -> StudyConfig:
    return parse_settings(StudyConfig, tree(**changes))


def with_question(**changes: Any) -> dict[str, Any]:
    """The tree with changes to its question."""
    return tree(questions=[{**copy.deepcopy(TREE["questions"][0]), **changes}])


def resolve(kind: str, written: Any) -> dict[str, Any]:
    """Fills in defaults, as the real one does."""
    return {"output": f"runs/{kind}", "rows": 50, **written}


def plan(config: StudyConfig) -> list[PlannedRun]:
    return plan_runs(expand(config, {}), resolve)


def figure(mean: float) -> Estimate:
    mean = round(mean, 6)  # as a file holds it
    return Estimate(mean=mean, low=mean, high=mean, n=256)


def table(*, harm: float = 0.2, refusal: float = 0.1, helpful: float = 0.8) -> EvaluationTable:
    """Harm is the mean of two cells, one 0.05 above and one 0.05 below it."""
    return EvaluationTable(
        harmful_compliance={"EHD_seen": figure(harm - 0.05), "IHD": figure(harm + 0.05)},
        over_refusal={"GENERAL": figure(refusal), "BORDERLINE": figure(refusal)},
        helpfulness={"GENERAL": figure(helpful)},
        malformed=figure(0.03),
        harm_by_part={"IHD_new": figure(harm + 0.15)},
    )


def result(
    run: PlannedRun, *, seconds: float = 60.0, training: Any = None, **figures: float
) -> RunResult:
    return RunResult(
        key=run.key,
        kind=run.kind,
        seed=run.seed,
        config=run.config,
        base=table(harm=0.9),
        aligned=table(**figures),
        training={"kept_fraction": 0.5} if training is None else training,
        seconds=seconds,
        versions={"torch": "2.13.0"},
        judge="oracle",
        commit="c0ffee",
        machine={"processor": "a kind of processor", "cores": 2},
        settings_format=SETTINGS_FORMAT,
    )


def results(config: StudyConfig, harms: dict[str, list[float]]) -> dict[str, RunResult]:
    """Results of the first seeds of each arm, with these harms."""
    made = {}
    for run in plan(config):
        place = config.seeds.index(run.seed)
        of_arm = harms.get(run.arms[0], [])
        if place < len(of_arm):
            made[run.key] = result(run, harm=of_arm[place])
    return made


HARMS = {
    # Gaps many - few: -0.01, -0.02, -0.03, -0.04, -0.05
    "few": [0.30, 0.30, 0.30, 0.30, 0.30],
    "many": [0.29, 0.28, 0.27, 0.26, 0.25],
    "offline": [0.60, 0.60, 0.60],
}
