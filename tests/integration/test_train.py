"""Whole runs: what they leave behind, and that no death along the way changes a number."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.rollout import RolloutWorker, _sampling_params
from equilibrate.config.files import load_run_config
from equilibrate.run.sinks import read_rows
from equilibrate.run.space import _size, space_of
from tests.integration import runs


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def straight(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    assert runs.finish(runs.start(settings, output)) == 0, output.with_suffix(".log").read_text()
    return output


def metrics(output: Path) -> bytes:
    return (output / "metrics.jsonl").read_bytes()


def test_every_iteration_is_recorded_and_in_parity(straight: Path) -> None:
    rows = read_rows(straight / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(runs.ITERATIONS))
    assert max(row["parity_gap_nats"] for row in rows) <= 1e-4
    assert all(row["skipped"] == 0.0 for row in rows)
    # The first update starts at the reference: no KL yet, and afterwards some.
    assert abs(rows[0]["kl"]) < 1e-5 < abs(rows[-1]["kl"])


def test_results_keep_the_contract(straight: Path) -> None:
    results = json.loads((straight / "results.json").read_text())
    harmful = {"IHD", "MHD", "EHD_seen", "EHD_heldout_known", "EHD_heldout_unknown"}
    for stage in ("base", "aligned"):
        assert set(results[stage]["harmful_compliance"]) == harmful
        assert set(results[stage]["over_refusal"]) == {"GENERAL", "BORDERLINE"}
        figure = results[stage]["helpfulness"]["GENERAL"]
        assert set(figure) >= {"mean", "low", "high", "n"}
        assert figure["n"] == runs.SMALL.evaluation_per_cell
    assert results["parity_gap_nats_max"] <= 1e-4
    assert results["cost_budget"] == 0.0
    assert results["multiplier_final"] >= 0.0
    assert set(results["seconds_by_phase"]) >= {"rollout", "score", "update", "sync", "iteration"}
    assert results["seed"] == 0
    assert "ray" in results["versions"]


def test_report_and_trace_are_there(straight: Path) -> None:
    assert "<html" in (straight / "report.html").read_text()[:200]
    trace = read_rows(straight / "evaluations.jsonl")
    assert [row["iteration"] for row in trace] == [0, 2, 4]


def test_aligned_model_is_a_plain_folder_that_moved(straight: Path, settings: Path) -> None:
    aligned = AutoModelForCausalLM.from_pretrained(straight / "aligned")
    base = AutoModelForCausalLM.from_pretrained(settings.parent / "policy")
    pairs = zip(aligned.parameters(), base.parameters(), strict=True)
    assert any(not torch.equal(new, old) for new, old in pairs)
    tokenizer = AutoTokenizer.from_pretrained(straight / "aligned")
    messages = [{"role": "user", "content": "how do i clean the lamp ?"}]
    assert "<sep>" in tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_checkpoint_is_exported_with_its_card(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export = ("export", str(straight), str(out), "--checkpoint", str(runs.ITERATIONS))
    assert runs.finish(runs.command(*export, log=tmp_path / "export")) == 0
    aligned = straight / "aligned"
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (out / file).read_bytes() == (aligned / file).read_bytes()
    for card in (aligned / "README.md", out / "README.md"):
        assert "| learned cost," in card.read_text()
        assert "| Harmful compliance | IHD |" in card.read_text()
    assert "- how do i" not in card.read_text()


def test_a_run_leaves_what_was_said_of_it(straight: Path) -> None:
    found = space_of(load_run_config(straight))
    written = {
        "checkpoints": straight / "checkpoints",
        "exported model": straight / "aligned",
        "report": straight / "report.html",
    }
    for part, path in written.items():
        assert found.parts[part] == pytest.approx(_size(path), rel=0.15), part
    assert found.left == pytest.approx(_size(straight), rel=0.15)


def test_a_run_that_ends_early_is_done(straight: Path, settings: Path, tmp_path: Path) -> None:
    output = tmp_path / "early"
    kl = [row["kl"] for row in read_rows(straight / "metrics.jsonl")]
    # No iteration of the same run before this one is above it.
    last = next(i for i in range(1, runs.ITERATIONS - 1) if kl[i] > max(0.0, *kl[:i]))
    stop_at = (max(0.0, *kl[:last]) + kl[last]) / 2
    arguments = (settings, output, f"ppo.kl.stop_at={stop_at}")
    assert runs.finish(runs.start(*arguments)) == 0, output.with_suffix(".log").read_text()
    assert metrics(straight).startswith(metrics(output))
    results = json.loads((output / "results.json").read_text())
    assert results["iterations"] == last + 1 == runs.num_rows(output)
    assert "is above ppo.kl.stop_at" in results["stopped_early"]
    assert "Ended early" in (output / "report.html").read_text()
    assert "The run ended early" in (output / "aligned" / "README.md").read_text()
    assert runs.finish(runs.start(*arguments), seconds=60) == 0
    assert "already holds this run" in output.with_suffix(".log").read_text()


def test_second_call_finds_the_first(straight: Path, settings: Path) -> None:
    before = metrics(straight), (straight / "report.html").stat().st_mtime_ns
    assert runs.finish(runs.start(settings, straight), seconds=60) == 0
    assert (metrics(straight), (straight / "report.html").stat().st_mtime_ns) == before
    assert "already holds this run" in straight.with_suffix(".log").read_text()


def test_second_run_in_the_folder_of_a_running_one_is_refused(
    settings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shared"
    first = runs.start(settings, output)
    runs.wait_until((output / "config.yaml").exists, first)
    try:
        assert runs.finish(runs.start(settings, output), seconds=60) == 4
    finally:
        first.kill()
        first.wait()


def test_killed_and_stopped_driver_change_no_number(
    straight: Path, settings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "driver"
    first = runs.start(settings, output)
    # One iteration beyond the checkpoint: it must be forgotten and done again.
    runs.wait_until(lambda: runs.num_rows(output) >= runs.CHECKPOINT_EVERY + 1, first)
    first.kill()
    first.wait()
    second = runs.start(settings, output)
    resumed = f"resuming at iteration {runs.CHECKPOINT_EVERY}"
    runs.wait_until(lambda: resumed in output.with_suffix(".log").read_text(), second)
    runs.wait_until(lambda: runs.num_rows(output) > runs.CHECKPOINT_EVERY, second)
    second.send_signal(signal.SIGTERM)
    assert runs.finish(second) == 143
    assert 0 < runs.num_rows(output) < runs.ITERATIONS + 1
    assert runs.finish(runs.start(settings, output)) == 0, output.with_suffix(".log").read_text()
    assert metrics(output) == metrics(straight)
    aligned = [folder / "aligned" / "model.safetensors" for folder in (output, straight)]
    assert aligned[0].read_bytes() == aligned[1].read_bytes()


def test_sharing_a_generator_changes_no_number(
    straight: Path, settings: Path, tmp_path: Path
) -> None:
    """The run of `straight` as one of a study, in the processes that another run has used."""
    short = {"iterations": 1, "evaluate_every": 0}
    # There is such a folder, but it is no reward model: what is missing is refused before any run.
    broken = {"data": {"reward": str(settings.parent / "policy")}}
    tree = {
        "name": "shared",
        "output": str(tmp_path / "study"),
        "results": str(tmp_path / "results.jsonl"),
        "base": {"train": [str(settings)]},
        # One task at a time on any machine: of three runs, of one and of one.
        "common": {"train": {"rollout": {"cpus": 0.375 * (os.cpu_count() or 1)}}},
        "seeds": [0],
        "arms": {
            "broken": {"kind": "train", "set": broken},
            "before": {"kind": "train", "set": {**short, "learner": {"policy_lr": 1e-2}}},
            "straight": {"kind": "train", "set": {}},
            "after": {"kind": "train", "set": short},
            "broken_too": {"kind": "train", "set": {**broken, **short}},
        },
        "questions": [{"id": "Q", "title": "?", "fronts": {"": ["straight"]}, "figures": ["harm"]}],
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(tree))
    generators = set()
    study = runs.command("study", str(file), log=tmp_path / "study")

    def ended() -> bool:
        generators.update(process.pid for process in runs.workers_of(study, "RolloutWorker"))
        return study.poll() is not None

    try:
        while not ended():
            time.sleep(0.5)
    finally:
        study.kill()
        study.wait()
    log = (tmp_path / "study.log").read_text()
    # What is wrong with one run of a task is told, and stops no other.
    assert study.returncode == 3, log
    assert log.count("failed: broken") == 2, log
    assert len(generators) == 2 * 2  # two for the task of three, two for that of one
    rows = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    (same,) = (row["key"] for row in rows if row["config"]["iterations"] == runs.ITERATIONS)
    assert metrics(tmp_path / "study" / "runs" / same) == metrics(straight)


def test_evaluate_finds_the_same_answers_again(straight: Path) -> None:
    before = [(straight / name).read_bytes() for name in ("base.json", "aligned.json")]
    for name in ("base.json", "aligned.json", "report.html"):
        (straight / name).unlink()
    assert runs.finish(runs.command("evaluate", str(straight), log=straight)) == 0
    assert [(straight / name).read_bytes() for name in ("base.json", "aligned.json")] == before
    assert (straight / "report.html").is_file()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_vllm_and_transformers_agree_on_the_aligned_folder(straight: Path) -> None:
    worker = RolloutWorker(
        model_folder=str(straight / "aligned"),
        dtype="float32",
        temperature=1.0,
        max_new_tokens=4,
        max_model_len=64,
        kv_cache_gib=0.1,
        enforce_eager=True,
    )
    tokens = list(range(4, 24))
    (output,) = worker._run([tokens], [_sampling_params(max_tokens=1, prompt_logprobs=0)])
    model = AutoModelForCausalLM.from_pretrained(straight / "aligned", dtype=torch.float32)
    with torch.no_grad():
        log_probs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = [log_probs[i, token].item() for i, token in enumerate(tokens[1:])]
    assert list(output.prompt_logprobs.logprobs) == pytest.approx(expected, abs=1e-5)


def test_missing_data_exits_3(settings: Path, tmp_path: Path) -> None:
    run = runs.start(settings, tmp_path / "none", "data.reward=/nowhere")
    assert runs.finish(run, seconds=60) == 3


def test_too_small_a_cluster_exits_4_and_says_what_is_missing(
    settings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "large"
    assert runs.finish(runs.start(settings, output, "learner.cpus=4096"), seconds=120) == 4
    assert "learner 4096" in output.with_suffix(".log").read_text()
