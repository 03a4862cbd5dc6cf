"""What the planner says of a training rank against what the process takes.

Each case runs in processes of its own, twice: as it is, and with an allocator that gives back at
once what is freed. Sizes are of resident memory at its worst moment, above what the process held
before it loaded a model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import become_rank, free_port

EXACT = {"MALLOC_TRIM_THRESHOLD_": "100000000"}
TOKENS = 512
LENGTH = 256
ADAPTER = {"adapter": {"rank": 16}}
AGAIN = {"activation_checkpointing": True}
CASES: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("float32", {}, 1),
    ("bfloat16", {}, 1),
    ("float32", AGAIN, 1),
    ("bfloat16", AGAIN, 1),
    ("float32", ADAPTER, 1),
    ("bfloat16", ADAPTER, 1),
    ("bfloat16", ADAPTER | AGAIN, 1),
    ("float32", {}, 2),
    ("float32", {"zero_stage": 1}, 2),
    ("float32", {"zero_stage": 2}, 2),
    ("float32", {"zero_stage": 3}, 2),
)
"""Dtype, settings of the trainer, ranks."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="cases whose settings hold this text")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        _spawn(json.loads(given.one))
        return
    found = []
    for model in given.models or [Path("models/SmolLM2-135M-Instruct")]:
        for dtype, group, ranks in CASES:
            if given.only not in json.dumps(group):
                continue
            case = {"model": str(model), "dtype": dtype, "group": group, "ranks": ranks}
            planned = _planned(case)
            taken = [_taken(case, environment) for environment in (EXACT, {})]
            case["model"] = model.name
            found.append(case | {"planned": planned, "exact": taken[0], "default": taken[1]})
            sizes = " ".join(f"{size / 1e9:6.2f}" for size in (planned, *taken))
            print(f"{model.name} {dtype} {json.dumps(group)} x {ranks}: {sizes}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"name": "rank_memory", "cases": found}) + "\n")


def _rows(case: dict[str, Any]) -> int:
    """Of one rank."""
    return int(TOKENS // LENGTH // case["ranks"])


def _planned(case: dict[str, Any]) -> int:
    from equilibrate.config.training import TrainingGroup
    from equilibrate.models.device import Accelerator
    from equilibrate.planner.memory import trained
    from equilibrate.planner.tracing import trace

    group = TrainingGroup.model_validate(case["group"])
    accelerator = Accelerator("cpu", case["dtype"])
    sizes = {"rows": _rows(case), "length": LENGTH}
    traced = trace(case["model"], "policy", accelerator, group=group, **sizes)
    return trained([traced], zero_stage=group.zero_stage, num_ranks=case["ranks"]).total


def _taken(case: dict[str, Any], environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "benchmarks.rank_memory", "--one", json.dumps(case)]
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    out = subprocess.run(command, env=settings, capture_output=True, text=True)
    lines = [line for line in out.stdout.splitlines() if line.startswith("peak ")]
    if not lines:
        sys.exit(f"{case}: {out.stderr[-2000:]}")
    return int(lines[-1].split()[1])


def _spawn(case: dict[str, Any]) -> None:
    from torch.multiprocessing.spawn import spawn

    spawn(_rank, (case, free_port()), nprocs=case["ranks"])


def _rank(rank: int, case: dict[str, Any], port: int) -> None:
    become_rank(rank, case["ranks"], port)
    import torch

    from actors.engine import DeepSpeedModel, join_group
    from equilibrate.config.training import TrainingGroup
    from equilibrate.models.device import Accelerator
    from equilibrate.models.loading import load_policy
    from equilibrate.models.trainable import prepare_training

    group = TrainingGroup.model_validate(case["group"])
    accelerator = Accelerator("cpu", case["dtype"])
    accelerator.prepare(threads=1)
    join_group(accelerator)
    before = _resident("VmRSS")
    policy = load_policy(case["model"], accelerator)
    prepare_training(policy, group, accelerator, seed=0)
    ranks = case["ranks"]
    model = DeepSpeedModel(policy, 1e-5, zero_stage=group.zero_stage, minibatch_size=ranks)
    # Loading has a worst moment of its own; what is planned is that of a step.
    Path("/proc/self/clear_refs").write_text("5")
    token_ids = torch.randint(5, 1000, (_rows(case), LENGTH))
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    for _ in range(2):
        for is_last in (False, True):
            log_probs, _ = model(token_ids, mask, 1.0)
            model.backward(-log_probs.mean(), is_last=is_last)
        model.step()
    if rank == 0:
        print("peak", _resident("VmHWM") - before, flush=True)


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not say {key}")


if __name__ == "__main__":
    main()
