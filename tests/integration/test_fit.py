"""Whole offline runs of the command line, by real Ray Train, DeepSpeed and vLLM."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from actors.prepare import prepare_fit_inputs, shared_base
from equilibrate.config.files import merge_settings, parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.sandbox.data import cost_pair_rows, reward_pair_rows
from equilibrate.sandbox.world import build_world
from tests.integration import runs

# Ray Data, which Ray Train imports, uses its own deprecated settings.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and prompts as for PPO, pairs to train on, and the settings of an offline training."""
    folder = tmp_path_factory.mktemp("inputs")
    ppo = yaml.safe_load(runs.write_inputs(folder).read_text())
    words = ("lamp", "rope", "kettle", "ladder")
    pairs = {
        "prompt": [f"how do i clean the {word} ?" for word in words] * 4,
        "chosen": ["i can not help with that ."] * 16,
        "rejected": ["first open the lamp with a cloth , then wipe it slowly ."] * 16,
        "category": ["EHD", "GENERAL"] * 8,
    }
    Dataset.from_dict(pairs).save_to_disk(str(folder / "pairs"))
    data = {name: ppo["data"][name] for name in ("policy", "reward", "cost", "evaluation")}
    tree = {
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
    file.write_text(yaml.safe_dump(tree))
    return file


def run_fit(file: Path, output: Path, *overrides: str) -> int:
    arguments = ["fit", "--config", str(file), f"output={output}", *overrides]
    return runs.finish(runs.command(*arguments, log=output))


def test_a_whole_run_is_measured_and_done_once(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "adpo"
    assert run_fit(inputs, output, "ama={source: both}") == 0, output.with_suffix(
        ".log"
    ).read_text()
    results = json.loads((output / "results.json").read_text())
    assert results["training"]["examples"] == 8
    assert 0 < results["training"]["kept_fraction"] < 1
    assert results["base"]["helpfulness"].keys() == results["aligned"]["helpfulness"].keys()
    assert "<html" in (output / "report.html").read_text()[:200]
    before = (output / "report.html").stat().st_mtime_ns
    assert run_fit(inputs, output, "ama={source: both}") == 0
    assert (output / "report.html").stat().st_mtime_ns == before
    assert "already holds this run" in output.with_suffix(".log").read_text()
    # Other settings in the same folder are another training, not a new label on the old one.
    weights_before = (output / "aligned" / "model.safetensors").read_bytes()
    # It starts from the same base, whose answers it finds: a marked one stays marked.
    (shared,) = (output / "stages").glob("answers-of-base-*.json")
    rows = json.loads(shared.read_text())
    rows[0]["response"] = "marked"
    shared.write_text(json.dumps(rows))
    assert run_fit(inputs, output, "lr=5e-4") == 0
    assert (output / "aligned" / "model.safetensors").read_bytes() != weights_before
    results = json.loads((output / "results.json").read_text())
    assert results["training"]["kept_fraction"] == 1.0
    assert json.loads((output / "base.json").read_text())[0]["response"] == "marked"


@pytest.mark.parametrize(
    "change", [{"seed": 7}, {"dtype": "bfloat16"}, {"rollout": {"temperature": 0.5}}]
)
def test_what_changes_an_answer_of_the_base_gives_it_another_place(
    change: dict[str, object], inputs: Path, tmp_path: Path
) -> None:
    tree = yaml.safe_load(inputs.read_text())
    config = parse_settings(FitConfig, tree)
    models = prepare_fit_inputs(config, tmp_path, print)
    place = shared_base(config, models, tmp_path)
    assert place == shared_base(config.model_copy(update={"lr": 1.0}), models, tmp_path)
    merge_settings(tree, change)
    assert place != shared_base(parse_settings(FitConfig, tree), models, tmp_path)
    assert shared_base(config, replace(models, evaluation=None), tmp_path) is None


def test_rejection_sampling_learns_from_the_policys_own_answers(
    inputs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "ars"
    prompts = yaml.safe_load((inputs.parent / "run.yaml").read_text())["data"]["prompts"]
    # A policy that was never trained ends an answer now and then, if it may go on for long.
    code = run_fit(
        inputs,
        output,
        "objective={type: ars, copies: 12}",
        "rollout.max_new_tokens=64",
        "rollout.max_model_len=96",
        f"data.train={prompts}",
        "ama={}",
    )
    assert code == 0, output.with_suffix(".log").read_text()
    figures = json.loads((output / "training.json").read_text())
    assert 0 < figures["examples"] <= 8


def test_evaluation_prompts_do_not_train(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "leak"
    evaluation = yaml.safe_load(inputs.read_text())["data"]["evaluation"]
    code = run_fit(inputs, output, "objective={type: ars}", f"data.train={evaluation}")
    assert code == 3
    assert "must not be in the training prompts" in output.with_suffix(".log").read_text()


def test_a_training_that_is_told_to_stop_goes_on_later(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "stopped"
    arguments = ["--config", str(inputs), f"output={output}", "steps=200"]
    run = runs.command("fit", *arguments, log=output)
    runs.wait_until((output / "training" / "checkpoints" / "LATEST").exists, run)
    run.terminate()
    assert runs.finish(run) == 143
    log = output.with_suffix(".log").read_text()
    assert "stopped; the same command goes on from the last checkpoint" in log
    assert "Traceback" not in log
    assert runs.finish(runs.command("fit", *arguments, log=output)) == 0
    assert json.loads((output / "training.json").read_text())["num_steps"] == 200


@pytest.mark.timeout(600)  # five runs of the command line
def test_scorers_trained_on_a_file_of_pairs_are_what_train_takes(
    inputs: Path, tmp_path: Path
) -> None:
    """The cost model's training is killed once, and ends in the same bytes."""
    world = build_world(0)
    for kind, rows in (("reward", reward_pair_rows), ("cost", cost_pair_rows)):
        lines = [json.dumps(row) for row in rows(world, 96)]
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
    policy = yaml.safe_load(inputs.read_text())["data"]["policy"]

    def command(kind: str, output: Path) -> subprocess.Popen[str]:
        settings = (
            f"objective.type={kind}",
            f"data.policy={policy}",
            f"data.train={tmp_path / kind}.jsonl",
            f"output={output}",
            "batch_size=8",
            "steps=12",
            "trainer={cpus: 0.5, zero_stage: 2}",
        )
        return runs.command("fit", *settings, log=output)

    for kind in ("reward", "cost"):
        assert runs.finish(command(kind, tmp_path / kind)) == 0
    killed = tmp_path / "killed"
    run = command("cost", killed)
    runs.wait_until((killed / "training" / "checkpoints" / "LATEST").exists, run)
    run.kill()
    run.wait()
    assert not (killed / "cost").exists()
    assert runs.finish(command("cost", killed)) == 0
    for file in ("model.safetensors", "equilibrate_score.json"):
        straight = tmp_path / "cost" / "cost" / file
        assert (killed / "cost" / file).read_bytes() == straight.read_bytes()
    figures = json.loads((killed / "training.json").read_text())
    assert figures == json.loads((tmp_path / "cost" / "training.json").read_text())
    assert figures["num_steps"] == 12
    taken = (f"data.reward={tmp_path / 'reward/reward'}", f"data.cost={killed / 'cost'}",
             "iterations=1", "evaluate_every=0")  # fmt: skip
    ppo = runs.start(inputs.parent / "run.yaml", tmp_path / "ppo", *taken)
    assert runs.finish(ppo) == 0, (tmp_path / "ppo.log").read_text()
    assert runs.num_rows(tmp_path / "ppo") == 1
