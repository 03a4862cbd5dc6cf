"""Offline training through real Ray Train, DeepSpeed and vLLM: ranks, ZeRO, deaths, whole runs."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.fit import train_policy
from actors.prepare import prepare_fit_inputs, shared_base
from equilibrate.config.files import merge_settings, parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.data.answers import Answer
from equilibrate.errors import NumericsError
from equilibrate.offline.table import encode_answers
from equilibrate.text.renderer import Renderer
from equilibrate.types import Category
from tests.integration import runs

# Ray Data, which Ray Train imports, uses its own deprecated settings.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

NUM_PAIRS = 48
TOKENS = 160
"""Budget of a pass: the eight pairs of a batch take several."""


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="test-fit")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def answers(tied_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of different lengths: the chosen answer counts up, the rejected one repeats itself."""
    folder = tmp_path_factory.mktemp("answers")
    pairs = [
        Answer(prompt=f"word{i % 7}", response=response, side=side, category=Category.GENERAL)
        for i in range(NUM_PAIRS)
        for side, response in (
            (1, " ".join(f"word{10 + j}" for j in range(2 + i % 5))),
            (-1, " ".join([f"word{30 + i % 3}"] * (1 + i % 4))),
        )
    ]
    encode_answers(Renderer(tied_llama), pairs, answers_per_example=2, max_length=32).save(folder)
    return folder


def settings(**changes) -> FitConfig:
    tree = {
        "objective": {"type": "dpo"},
        "fdc": {"amounts": {"GENERAL": NUM_PAIRS}},
        "trainer": {"max_tokens_per_batch": TOKENS},
        "batch_size": 8,
        "epochs": 2,
        "lr": 1e-3,
    }
    return parse_settings(FitConfig, tree | changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(run / "aligned", local_files_only=True).state_dict()


@pytest.fixture(scope="module")
def trained(
    cluster: None, tied_llama: Path, answers: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("trained")
    train_policy(settings(), tied_llama, answers, run)
    return run


def test_training_leaves_an_ordinary_folder_and_its_figures(trained, tied_llama):
    figures = json.loads((trained / "training.json").read_text())
    assert figures["num_steps"] == 2 * NUM_PAIRS / 8
    assert figures["examples"] == NUM_PAIRS
    assert figures["kept_fraction"] == 1.0
    before = AutoModelForCausalLM.from_pretrained(tied_llama).state_dict()
    assert any(not torch.equal(new, before[name]) for name, new in weights(trained).items())
    assert AutoTokenizer.from_pretrained(trained / "aligned").eos_token == "<eos>"
    assert not (trained / "training").exists()


def test_it_learns_the_chosen_answers(trained, tied_llama):
    """The counting answers become likelier than they were, the repeating ones do not."""
    tokenizer = AutoTokenizer.from_pretrained(tied_llama)

    def mean_log_prob(folder: Path, text: str) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return -model(ids, labels=ids).loss.item()

    gains = {
        text: mean_log_prob(trained / "aligned", text) - mean_log_prob(tied_llama, text)
        for text in ("word3 word10 word11 word12", "word3 word31 word31")
    }
    chosen, rejected = gains.values()
    assert chosen > 0.5
    assert chosen > rejected + 0.5


@pytest.mark.parametrize(("zero_stage", "num_workers"), [(0, 2), (2, 2), (3, 2)])
def test_ranks_and_zero_stages_learn_the_same(
    trained, tied_llama, answers, tmp_path, zero_stage, num_workers
):
    trainer = {
        "zero_stage": zero_stage,
        "num_workers": num_workers,
        "max_tokens_per_batch": TOKENS,
    }
    train_policy(settings(trainer=trainer), tied_llama, answers, tmp_path)
    expected = weights(trained)
    # The same sums in another order; Adam's first steps magnify the rounding of tiny gradients.
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-3)


def test_a_lost_rank_costs_nothing_but_time(cluster, tied_llama, answers, tmp_path):
    """Killed after the first checkpoint; the weights equal those of the undisturbed run."""
    trainer = {"zero_stage": 2, "num_workers": 2, "max_tokens_per_batch": TOKENS}
    config = settings(trainer=trainer)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    train_policy(config, tied_llama, answers, straight)
    done, killed = threading.Event(), []

    def kill_one_rank() -> None:
        while not done.is_set() and not killed:
            if list(broken.glob("training/.train/*/checkpoint_*/step.txt")):
                for child in psutil.Process().children(recursive=True):
                    if "RayTrainWorker" in "".join(child.cmdline()[:1]):
                        child.kill()
                        killed.append(child.pid)
                        return
            time.sleep(0.002)

    watcher = threading.Thread(target=kill_one_rank)
    watcher.start()
    try:
        train_policy(config, tied_llama, answers, broken)
    finally:
        done.set()
        watcher.join()
    assert killed
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(broken)[name], tensor), name


def test_numbers_that_are_not_finite_stop_the_training(cluster, tied_llama, answers, tmp_path):
    with pytest.raises(NumericsError, match=r"dpo training: step \d+, gradient norm .* lr"):
        train_policy(settings(lr=1e30), tied_llama, answers, tmp_path)
    assert not (tmp_path / "aligned").exists()


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
