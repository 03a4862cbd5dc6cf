"""The journey on real files, step by step, each by the command a user types: docs/real.md.

    python -m benchmarks.real DATA OUT [STEP ...]

DATA is a folder of public sets in their original columns; MODEL is made by `make model`. The same
command goes on where it was stopped. What it finds is in OUT/results, figures only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks import real_figures

MODEL = "models/SmolLM2-135M-Instruct"
PARTS = ("test=0.25", "judge=0.2", "train=0.55")
"""`train` teaches the run's own models, `judge` those that judge it, `test` only measures."""
PASS = {"max_tokens_per_batch": 4096}
"""Twice as many take up to 19 GB of a process, beside which nothing else has room on 24."""
LENGTH = {"max_length": 320, "cpu_threads": 2, "trainer": {"cpus": 1} | PASS}
CUT = 160
"""Tokens of prompt and answer that a cost model reads: answers cut at 48 and whole ones are told
apart as well."""
SAMPLING = {
    "temperature": 0.6,
    "max_new_tokens": 48,
    "max_model_len": 384,
    "cpus": 0.5,
    "memory_gib": 0.5,
}
SEEDS = (0, 1)

PKU = ("pku_v0_pairs_rebuilt.jsonl", "pku_current_500.jsonl", "pku_v0_demo32.json")
BEAVERTAILS = "beavertails_30k_test.csv"
DO_NOT_ANSWER = "do_not_answer.csv"
COMPLETIONS = "xstest_completions_gpt4_gpteval.csv"
HELPFUL = ("hh_helpful_test_relabelled.jsonl", "arena_pref_500.jsonl", "dpo_en_demo.json")
MEASURED = {
    "harmbench": ("EHD", "harmbench_text_all.csv", 0.3),
    "xstest": ("", "xstest_prompts.csv", 0.5),
    "oktest": ("BORDERLINE", "oktest.csv", 0.4),
    "jbb_benign": ("BORDERLINE", "jbb_benign.csv", 0.95),
}
"""Sets that teach nobody: class (empty: the file says), file, and the share that is measured by."""


CLASSES = {"pairs": "EHD", "current": "EHD", "helpful": "GENERAL", "buffer": "GENERAL"}
OFFLINE: Mapping[str, tuple[Mapping[str, int], dict[str, Any]]] = {
    "dpo": ({"pairs": 480}, {"objective": {"type": "dpo"}}),
    "adpo": ({"pairs": 480}, {"objective": {"type": "dpo"}, "ama": {"source": "cost"}}),
    "bfpo": ({"current": 150, "buffer": 330}, {"objective": {"type": "bfpo"}}),
}
"""How many pairs of which data, and what else differs."""


class Journey:
    """Where everything lies, and how each step is made."""

    def __init__(self, data: Path, out: Path, model: Path, dtype: str) -> None:
        self.data, self.out, self.model, self.dtype = data, out, model, dtype

    def steps(self) -> Mapping[str, Callable[[], None]]:
        steps: dict[str, Callable[[], None]] = {
            "split": self.split,
            "cost": lambda: self.scorer("cost", seed=0),
            "reward": lambda: self.scorer("reward", seed=0),
            "judge-cost": lambda: self.scorer("judge-cost", seed=1),
            "judge-reward": lambda: self.scorer("judge-reward", seed=1),
            "scorers": lambda: real_figures.scorers(self.out),
            "sft": self.sft,
        }
        for seed in SEEDS:
            steps[f"ppo-{seed}"] = partial(self.ppo, seed)
        for name in OFFLINE:
            steps[name] = partial(self.offline, name)
        steps["judges"] = self.judges
        steps["table"] = lambda: real_figures.table(self.out)
        return steps

    def split(self) -> None:
        """By the words of the prompt, so that a prompt is in the same part of every shape."""
        pku = [self.data / name for name in PKU]
        helpful = [self.data / name for name in HELPFUL]
        harmful = self.data / BEAVERTAILS
        self._split("answers-pku", "answers", pku)
        self._split("answers-beavertails", "answers", [harmful])
        self._split("answers-dna", "answers", [self.data / DO_NOT_ANSWER])
        self._split("pairs", "pairs", pku)
        self._split("current", "pairs", pku[1:2])
        self._split("helpful", "pairs", helpful)
        real_figures.as_safe(self.out / "helpful/train.jsonl", self.out / "buffer/train.jsonl")
        self._split("harmful", "prompts", [f"EHD={file}" for file in (*pku, harmful)])
        for name in ("dolly_1k.csv", "alpaca_en_demo.json"):
            self._split(name.partition("_")[0], "prompts", [f"GENERAL={self.data / name}"])
        for name, (category, file, share) in MEASURED.items():
            classed = f"{category}={self.data / file}" if category else self.data / file
            parts = (f"test={share}", f"rest={round(1 - share, 3)}")
            self._split(name, "prompts", [classed], parts)
        for part in ("train", "judge"):
            real_figures.harmless_answers(self.data, self.out, part)
        measured = [self.out / name / "test.jsonl" for name in MEASURED]
        real_figures.keep_apart(self.out, measured)
        evaluated = [*measured, self.spaced("harmful/test.jsonl", 120)]
        for name in real_figures.SETS:
            real_figures.divide(self.out / name / "test.jsonl", evaluated)

    def _split(
        self, name: str, shape: str, files: Sequence[str | Path], parts: Sequence[str] = PARTS
    ) -> None:
        if not (self.out / name / "test.jsonl").exists():
            out = ["--out", self.out / name, "--shape", shape]
            self._run("split", *files, *out, "--parts", *parts)

    def scorer(self, name: str, *, seed: int) -> None:
        kind = real_figures.SCORERS[name]
        settings = {
            **LENGTH,
            "dtype": self.dtype,
            "objective": {"type": kind},
            "epochs": 2,
            "lr": 5e-5,
            "batch_size": 16,
            "seed": seed,
            "data": {
                "policy": str(self.model),
                "train": [str(file) for file in real_figures.taught(self.out, name)],
            },
        }
        self._config("fit", name, settings | ({"max_length": CUT} if kind == "cost" else {}))

    def sft(self) -> None:
        """A first step on safe and on helpful answers: PPO cannot reward what is never sampled."""
        amounts = {"pairs": 280, "helpful": 200}
        self._policy("sft", {"objective": {"type": "sft"}, "lr": 2e-5}, self.model, amounts)

    def offline(self, name: str) -> None:
        amounts, settings = OFFLINE[name]
        data = self.own_scorers() if "ama" in settings else {}
        self._policy(name, settings | {"lr": 1e-5}, self.aligned("sft"), amounts, data)

    def own_scorers(self) -> dict[str, str]:
        return {
            "reward": str(self.out / "runs/reward/reward"),
            "cost": str(self.out / "runs/cost/cost"),
        }

    def ppo(self, seed: int) -> None:
        general = [{"file": str(self.out / name / "train.jsonl")} for name in ("dolly", "alpaca")]
        data = {
            "policy": str(self.aligned("sft")),
            **self.own_scorers(),
            "prompts": [{"file": str(self.out / "harmful/train.jsonl")}, *general],
            "evaluation": self.evaluation(),
            "ptx": str(self.out / "harmless/train.jsonl"),
        }
        settings = {
            "seed": seed,
            "dtype": self.dtype,
            "cpu_threads": 2,
            "iterations": 20,
            "evaluate_every": 0,
            "checkpoint_every": 8,
            "rollout": SAMPLING | {"prompts_per_iteration": 8, "copies": 4},
            "scoring": {"cpus": 0.5},
            "learner": {
                "cpus": 0.5,
                "policy_lr": 2e-5,
                "lr_schedule": "cooldown",
                "ptx_coef": 0.1,
                **PASS,
            },
            "ppo": {"minibatch_size": 16, "advantage": "rloo", "kl": {"coef": 0.05}},
            "fdc": {"mixture": {"GENERAL": 0.4, "EHD": 0.6}},
            "constraint": {"max_unsafe_share": 0.1},
        }
        self._config("train", f"ppo-{seed}", settings | {"data": data})

    def judges(self) -> None:
        """How far the judges' cost model can be believed; unfit (exit 6) is a result as well."""
        harmless = self.out / "look-alikes.jsonl"
        real_figures.look_alikes(self.data / COMPLETIONS, harmless)
        folder = f"folder={self.out / 'runs/judge-cost/cost'}"
        for name, file in real_figures.measured(self.out, "judge-cost").items():
            out = ["--look-alikes", harmless, "--json", self.out / f"results/judge-{name}.json"]
            options = ["--positive", "unsafe", folder, "threads=2"]
            self._run("judge", file, "--judge", "cost_model", *out, *options, may_end_with=(0, 6))

    def evaluation(self) -> dict[str, Any]:
        return {
            "pku_beavertails": str(self.spaced("harmful/test.jsonl", 120)),
            **{name: str(self.out / name / "test.jsonl") for name in MEASURED},
            "dolly": str(self.spaced("dolly/test.jsonl", 60)),
            "alpaca": str(self.spaced("alpaca/test.jsonl", 60)),
        }

    def spaced(self, file: str, number: int) -> Path:
        """A file of so many rows, evenly spaced: its sources stand one after the other."""
        source = self.out / file
        out = source.with_name(f"{source.stem}-{number}.jsonl")
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        out.write_text("".join(lines[i * len(lines) // number] for i in range(number)), "utf-8")
        return out

    def aligned(self, run: str) -> Path:
        return self.out / "runs" / run / "aligned"

    def _policy(
        self,
        name: str,
        settings: Mapping[str, Any],
        policy: Path,
        amounts: Mapping[str, int],
        scorers: Mapping[str, str] | None = None,
    ) -> None:
        train = [
            {"file": str(self.out / shape / "train.jsonl"), "category": CLASSES[shape]}
            for shape in amounts
        ]
        data = {"policy": str(policy), "train": train, "evaluation": self.evaluation()}
        fdc = {"amounts": {CLASSES[shape]: amount for shape, amount in amounts.items()}}
        common = {**LENGTH, "dtype": self.dtype, "batch_size": 16}
        tree = {**common, **settings, "fdc": fdc, "rollout": SAMPLING}
        self._config("fit", name, tree | {"data": data | dict(scorers or {})})

    def _config(self, command: str, name: str, settings: Mapping[str, Any]) -> None:
        """Run the settings; they stay beside the results."""
        config = self.out / "results" / f"{name}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        tree = dict(settings) | {"output": str(self.out / "runs" / name)}
        config.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        self._run(command, "--config", config)

    def _run(self, *arguments: object, may_end_with: Sequence[int] = (0,)) -> None:
        command = [sys.executable, "-m", "equilibrate", *map(str, arguments)]
        print("+", *command[2:], flush=True)
        code = subprocess.run(command).returncode
        if code not in may_end_with:
            sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("steps", nargs="*")
    parser.add_argument("--model", type=Path, default=Path(MODEL))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    paths = (given.data.resolve(), given.out.resolve(), given.model.resolve())
    steps = Journey(*paths, given.dtype).steps()
    for name in given.steps or steps:
        if name not in steps:
            parser.error(f"{name} is no step; the steps are {', '.join(steps)}")
        steps[name]()


if __name__ == "__main__":
    main()
