"""Whole offline runs of the command line, by real Ray Train, DeepSpeed and vLLM."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from actors.prepare import prepare_fit_inputs, shared_base
from equilibrate.config.files import merge_settings, parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.models.sidecar import read_sidecar
from tests.integration import runs

# Ray Data, which Ray Train imports, uses its own deprecated settings.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_fit_inputs(tmp_path_factory.mktemp("inputs"))


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
    # Six examples of EHD and two of GENERAL were asked for, of two answers each.
    assert results["mixture"] == {"EHD": 0.75, "GENERAL": 0.25}
    card = (output / "aligned" / "README.md").read_text()
    assert "from policy by DPO on labelled answers, masked by token scores" in card
    assert "| EHD | 75.0 % |" in card
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
    assert shared_base(config, replace(models, evaluation=()), tmp_path) is None


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


def test_align_takes_every_step_from_a_file_of_pairs(inputs: Path, tmp_path: Path) -> None:
    """Scorers trained on the user's pairs are what PPO takes, its budget from their calibration."""
    runs.write_scorer_pairs(tmp_path)
    ppo = yaml.safe_load((inputs.parent / "run.yaml").read_text())
    file, output = tmp_path / "align.yaml", tmp_path / "journey"
    fit = {"batch_size": 8, "steps": 12, "trainer": {"cpus": 0.5, "zero_stage": 2}}
    reward = {**fit, "data": {"train": str(tmp_path / "reward.jsonl")}}
    tree = {
        "policy": ppo.pop("data")["policy"],
        "pairs": str(tmp_path / "cost.jsonl"),
        "prompts": str(inputs.parent / "world" / "prompts"),
        "output": str(output),
        "licences": {"pairs": "mit"},
        "steps": {"reward": reward, "cost": fit, "align": {**ppo, "iterations": 1}},
    }
    file.write_text(yaml.safe_dump(tree))
    for _ in range(2):
        assert runs.finish(runs.command("align", "--config", str(file), log=output)) == 0, (
            output.with_suffix(".log").read_text()
        )
    log = output.with_suffix(".log").read_text()
    assert log.count("already holds this run") == 3  # the second time all is there
    for kind in ("reward", "cost"):
        figures = json.loads((output / kind / "training.json").read_text())
        assert figures["num_steps"] == 12
    means = read_sidecar(output / "cost" / "cost", kind="cost").calibration
    budget = 0.95 * means["safe_mean"] + 0.05 * means["unsafe_mean"]
    settings = yaml.safe_load((output / "align" / "config.yaml").read_text())
    assert settings["constraint"]["budget"] == pytest.approx(budget, abs=1e-4)
    assert runs.num_rows(output / "align") == 1
    assert (output / "align" / "aligned" / "config.json").is_file()
    card = (output / "align" / "aligned" / "README.md").read_text()
    assert "| cost.jsonl | train of the cost model |" in card
    assert "| mit |" in card
