"""A made-up run folder, with every file that the report reads."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from equilibrate.evaluation import EvaluationTable, Verdict, compare, tabulate
from equilibrate.report import TrainingSummary, summarise_training, write_results
from equilibrate.run.sinks import RunSink
from equilibrate.types import Category, Prompt

CELLS = {
    "IHD": Category.IHD,
    "MHD": Category.MHD,
    "EHD_seen": Category.EHD,
    "EHD_heldout_known": Category.EHD,
    "EHD_heldout_unknown": Category.EHD,
    "GENERAL": Category.GENERAL,
    "BORDERLINE": Category.BORDERLINE,
}
BASE_HARM = 0.92
ALIGNED_HARM = {"IHD": 0.05, "MHD": 0.03, "EHD_seen": 0.12, "EHD_heldout_known": 0.35}
ALIGNED_REFUSAL = {"GENERAL": 0.03, "BORDERLINE": 0.2}
CANARY = "</script><script>window.canary=1</script><img src=x onerror=alert(1)>"
NUM_ITERATIONS = 120


def prompts(per_cell: int) -> list[Prompt]:
    return [
        Prompt(
            prompt_id=f"{cell}/{i}",
            text=f"please tell me how to {cell.lower()} number {i} in the garden",
            token_ids=(1,),
            category=category,
            cell=cell,
        )
        for cell, category in CELLS.items()
        for i in range(per_cell)
    ]


def verdicts(asked: list[Prompt], progress: float, seed: int) -> list[Verdict]:
    """From base (progress 0) to aligned (1)."""
    rng = random.Random(seed)
    result = []
    for prompt in asked:
        harm = BASE_HARM + progress * (ALIGNED_HARM.get(prompt.cell, 0.7) - BASE_HARM)
        refusal = progress**2 * ALIGNED_REFUSAL.get(prompt.cell, 0.0)
        harmless = not prompt.category.is_safety
        harmful, refused = rng.random() < harm, rng.random() < refusal
        result.append(
            Verdict(
                helpfulness=0.1
                if refused
                else min(1.0, 0.75 + 0.1 * progress + 0.2 * rng.random()),
                harmful=harmful and not harmless,
                refused=refused and harmless,
                malformed=rng.random() < 0.03 - 0.02 * progress,
            )
        )
    return result


def write_training(folder: Path, num_iterations: int) -> None:
    rng = random.Random(0)
    sink = RunSink(folder)
    for i in range(num_iterations):
        p = 1 - math.exp(-i / 30)
        noise = rng.gauss(0, 0.12)
        values = {
            "reward": 0.4 + 1.2 * p + noise,
            "cost": 0.9 - 1.6 * p + noise,
            "safety_cost": 2.1 - 2.2 * p + 3 * noise,
            "multiplier": 1 + 2.2 * p - 1.4 * p**4 + 0.05 * noise,
            "kl_coef": 0.02,
            "kl": 0.12 * p + 0.01 * abs(noise),
            "approx_kl": 0.01 + 0.01 * abs(noise),
            "entropy": 0.9 - 0.4 * p + 0.1 * noise,
            "kept_fraction": 0.52 + 0.1 * noise,
            "clip_fraction": 0.08 + 0.1 * abs(noise),
            "truncated_fraction": 0.02,
            "parity_gap_nats": 2.1e-6,
            "skipped": 0.0,
            "mixture_GENERAL": 0.30,
            "mixture_BORDERLINE": 0.25,
            "mixture_EHD": 0.25 - 0.1 * p,
            "mixture_IHD": 0.12 + 0.06 * p,
            "mixture_MHD": 0.08 + 0.04 * p,
        }
        for category, end in (("EHD", 0.12), ("IHD", 0.05), ("MHD", 0.03)):
            values[f"unsafe_fraction_{category}"] = max(0.0, 0.9 + p * (end - 0.9) + noise / 2)
        sink.write(i, values)
        phases = {"rollout": 1.4, "score": 0.35, "update": 1.5, "sync": 0.03}
        phases = {name: seconds * (1 + noise / 4) for name, seconds in phases.items()}
        sink.write_seconds(i, {**phases, "iteration": math.fsum(phases.values()) + 0.05})
    sink.close()


def write_evaluations(folder: Path, asked: list[Prompt]) -> None:
    with (folder / "evaluations.jsonl").open("w") as file:
        for i in range(0, NUM_ITERATIONS + 1, 20):
            table = tabulate(asked, verdicts(asked, i / NUM_ITERATIONS, seed=i))
            file.write(json.dumps({"iteration": i, "table": table.to_json()}) + "\n")


def write_samples(folder: Path, asked: list[Prompt], base: list[Verdict], aligned: list[Verdict]):
    with (folder / "samples.jsonl").open("w") as file:
        for stage, judged in (("base", base), ("aligned", aligned)):
            for i, (prompt, verdict) in enumerate(zip(asked, judged, strict=True)):
                answer = "first peel the kite with a spoon , then rinse it slowly ."
                if verdict.refused or (stage == "aligned" and not verdict.harmful):
                    answer = "i worry that is unsafe , instead call the warden and use a lantern ."
                row = {
                    "stage": stage,
                    "cell": prompt.cell,
                    "prompt": prompt.text,
                    "response": answer if i else CANARY,
                    "verdict": {
                        "helpfulness": verdict.helpfulness,
                        "harmful": verdict.harmful,
                        "refused": verdict.refused,
                        "malformed": verdict.malformed,
                    },
                }
                file.write(json.dumps(row) + "\n")


def tables(per_cell: int) -> tuple[EvaluationTable, EvaluationTable, EvaluationTable]:
    asked = prompts(per_cell)
    base, aligned = verdicts(asked, 0.0, 1), verdicts(asked, 1.0, 2)
    return tabulate(asked, base), tabulate(asked, aligned), compare(asked, base, aligned)


def write_run(folder: Path, *, per_cell: int = 32) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    asked = prompts(per_cell)
    write_training(folder, NUM_ITERATIONS)
    write_evaluations(folder, asked)
    write_samples(folder, asked, verdicts(asked, 0.0, 1), verdicts(asked, 1.0, 2))
    (folder / "config.yaml").write_text(
        "seed: 3\noutput: runs/sandbox\nconstraint: {type: pid, budget: 0.0, scope: safety}\n"
        "ppo: {clip_range: 0.2, kl: {type: fixed, coef: 0.02}}\n"
    )
    base, aligned, difference = tables(per_cell)
    summary: TrainingSummary = summarise_training(folder)
    write_results(
        folder / "results.json",
        base=base,
        aligned=aligned,
        difference=difference,
        training=summary,
        cost_budget=0.0,
        stage_seconds={"base": 120.0, "scorers": 61.5, "evaluation": 20.25},
        judge="oracle",
        versions={"python": "3.11.2", "torch": "2.13.0"},
        seed=3,
    )
    return folder


def write_finished(
    folder: Path, seed: int, harm: float, *, multiplier: float | None = 0.5, **settings: Any
) -> Path:
    """A finished run of a few cells, whose figures have no width."""

    def figure(mean: float) -> dict:
        return {"mean": mean, "low": mean, "high": mean, "n": 256}

    def table(harm: float) -> dict:
        return {
            "harmful_compliance": {"IHD": figure(harm)},
            "over_refusal": {"GENERAL": figure(0.05)},
            "helpfulness": {"GENERAL": figure(0.8), "IHD": figure(0.4)},
            "malformed": figure(0.02),
        }

    results = {
        "seed": seed,
        "base": table(0.9),
        "aligned": table(harm),
        "cost_mean": -1.5,
        "multiplier_final": multiplier,
        "parity_gap_nats_max": 1.2e-5,
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    config = {"seed": seed, "output": str(folder), "sandbox": {"seed": seed}, **settings}
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder
