"""Small whole runs of the command line on models that were never trained, for tests of the loop."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from equilibrate.sandbox.data import Sizes, cost_pair_rows, reward_pair_rows, write_world
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer
from equilibrate.sandbox.world import build_world

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


def write_fit_inputs(folder: Path) -> Path:
    """What `write_inputs` writes, pairs to train on, and the settings of an offline training."""
    ppo = yaml.safe_load(write_inputs(folder).read_text())
    words = ("lamp", "rope", "kettle", "ladder")
    pairs = {
        "prompt": [f"how do i clean the {word} ?" for word in words] * 4,
        "chosen": ["i can not help with that ."] * 16,
        "rejected": ["first open the lamp with a cloth , then wipe it slowly ."] * 16,
        "category": ["EHD", "GENERAL"] * 8,
    }
    Dataset.from_dict(pairs).save_to_disk(str(folder / "pairs"))
    data = {name: ppo["data"][name] for name in ("policy", "reward", "cost", "evaluation")}
    settings = {
        "data": data | {"train": str(folder / "pairs")},
        "fdc": {"amounts": {"EHD": 6, "GENERAL": 2}},
        "batch_size": 4,
        "lr": 1e-3,
        "rollout": {
            name: ppo["rollout"][name]
            for name in ("max_new_tokens", "max_model_len", "cpus", "memory_gib")
        },
        "scoring": {"cpus": 0.25},
        "trainer": {"cpus": 0.5},
    }
    file = folder / "fit.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def write_scorer_pairs(folder: Path) -> None:
    """`reward.jsonl` and `cost.jsonl`: pairs of the built-in world, as a user has them."""
    world = build_world(0)
    for kind, rows in (("reward", reward_pair_rows), ("cost", cost_pair_rows)):
        lines = [json.dumps(row) for row in rows(world, 96)]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")


def fit_scorer(kind: str, policy: Path, pairs: Path, output: Path) -> subprocess.Popen[str]:
    settings = (
        f"objective.type={kind}",
        f"data.policy={policy}",
        f"data.train={pairs / kind}.jsonl",
        f"output={output}",
        "batch_size=8",
        "steps=12",
        "trainer={cpus: 0.5, zero_stage: 2}",
    )
    return command("fit", *settings, log=output)


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
