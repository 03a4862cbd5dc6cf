"""Small whole runs of the command line on models that were never trained, for tests of the loop."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from transformers import AutoModelForSequenceClassification

from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from equilibrate.sandbox.data import Sizes, write_world
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer

ITERATIONS = 5
CHECKPOINT_EVERY = 2
SMALL = Sizes(
    base_examples=8,
    reward_pairs=8,
    cost_pairs=8,
    prompts_per_class=24,
    evaluation_per_cell=4,
)


def write_inputs(folder: Path) -> Path:
    """A world, a policy, a reward and a cost model, and the settings of a run on them."""
    world = folder / "world"
    world.mkdir()
    write_world(world, seed=0, sizes=SMALL)
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    for kind in ("reward", "cost"):
        scorer = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
        scorer.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
        write_sidecar(folder / kind, ScorerSidecar(kind=kind))
    settings: dict[str, Any] = {
        "iterations": ITERATIONS,
        "checkpoint_every": CHECKPOINT_EVERY,
        "evaluate_every": 2,
        "data": {name: str(folder / name) for name in ("policy", "reward", "cost")}
        | {name: str(world / name) for name in ("prompts", "evaluation")},
        "rollout": {
            "prompts_per_iteration": 8,
            "max_new_tokens": 8,
            "max_model_len": 64,
            "cpus": 0.25,
            "memory_gib": 0.1,
            "num_workers": 2,
        },
        "scoring": {"cpus": 0.25},
        "learner": {
            "cpus": 0.25,
            "max_tokens_per_batch": 192,
            "policy_lr": 1e-4,
            "critic_lr": 5e-4,
            "lr_schedule": "linear",
        },
        "ppo": {"minibatch_size": 4},
        "ama": {},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def command(*arguments: str, log: Path) -> subprocess.Popen[str]:
    """`python -m equilibrate ...`, its output beside the folder `log`."""
    with log.with_suffix(".log").open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "equilibrate", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )


def start(settings: Path, output: Path, *overrides: str) -> subprocess.Popen[str]:
    train = ["train", "--config", str(settings), f"output={output}", *overrides]
    return command(*train, log=output)


def finish(run: subprocess.Popen[str], seconds: float = 300) -> int:
    try:
        return run.wait(seconds)
    finally:
        run.kill()


def num_rows(output: Path) -> int:
    file = output / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_until(
    condition: Callable[[], bool], run: subprocess.Popen[str], seconds: float = 300
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, f"the run ended with {run.returncode} before the moment came"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.02)


def workers_of(run: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Processes of this run's own cluster, by the class of their actor."""
    found = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            if f"ray::{name}" in " ".join([process.name(), *process.cmdline()]):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def worker_of(run: subprocess.Popen[str], name: str) -> psutil.Process:
    found = workers_of(run, name)
    assert found, f"no {name} under process {run.pid}"
    return found[0]
