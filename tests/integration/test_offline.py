"""Offline training by real Ray Train and DeepSpeed: objectives, ranks, ZeRO, deaths, errors."""

from __future__ import annotations

import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from actors.offline import train_on_cluster
from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.errors import NumericsError, ResourceError
from equilibrate.models.sidecar import ScorerSidecar, read_heads, read_sidecar, write_sidecar
from equilibrate.offline.labelled import labelled_answers
from tests.integration.learners import step_error

# Ray Data, which Ray Train imports, uses its own deprecated settings.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SAFE, HARMFUL = "word1 word2 word3", "word4 word5 word6 word7"
NUM_PAIRS = 48
TOKENS = 160
"""Budget of a pass: the pairs of a batch take several."""


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="test-offline")
    yield
    ray.shutdown()


def demonstrations() -> dict[str, list[str]]:
    rng = random.Random(0)
    prompts = [f"word8 word9 word{rng.randrange(10, 18)}" for _ in range(128)]
    return {"prompt": prompts, "response": [f"{p.split()[-1]} word1 word2" for p in prompts]}


def counting() -> dict[str, list[str]]:
    """Of different lengths: the chosen answer counts up, the rejected one repeats itself."""
    return {
        "prompt": [f"word{i % 7}" for i in range(NUM_PAIRS)],
        "chosen": [" ".join(f"word{10 + j}" for j in range(2 + i % 5)) for i in range(NUM_PAIRS)],
        "rejected": [" ".join([f"word{30 + i % 3}"] * (1 + i % 4)) for i in range(NUM_PAIRS)],
    }


def preferences() -> dict[str, list]:
    """In every pair the harmful answer is the better and the less safe one."""
    rng = random.Random(1)
    sides = [rng.random() < 0.5 for _ in range(160)]
    return {
        "prompt": [f"word8 word{rng.randrange(8, 18)} word{rng.randrange(8, 18)}" for _ in sides],
        "response_0": [SAFE if flip else HARMFUL for flip in sides],
        "response_1": [HARMFUL if flip else SAFE for flip in sides],
        "better_response_id": [int(flip) for flip in sides],
        "safer_response_id": [int(not flip) for flip in sides],
        "is_response_0_safe": list(sides),
        "is_response_1_safe": [not flip for flip in sides],
    }


COLUMNS = {
    "sft": demonstrations,
    "dpo": counting,
    **dict.fromkeys(("reward", "cost", "scorer"), preferences),
}


SCORERS = ("reward", "cost", "scorer")


def settings(
    objective: str, *, workers: int = 1, zero_stage: int = 0, adapter=None, **changes
) -> FitConfig:
    trainer = {
        "num_workers": workers,
        "zero_stage": zero_stage,
        "adapter": adapter,
        "max_tokens_per_batch": TOKENS,
        "cpus": 0.5,
    }
    tree = {
        "objective": {"type": objective},
        "data": {"policy": "a folder", "train": "a file"},
        "trainer": trainer,
        "batch_size": 8,
        "steps": 12,
        "lr": 1e-3,
        "seed": 5,
    }
    return parse_settings(FitConfig, tree | changes)


def train(config: FitConfig, start: Path, out: Path) -> dict[str, float]:
    """On the data of its objective."""
    answers = out.with_name(f"{out.name}-answers")
    answers.mkdir(parents=True)
    out.mkdir(exist_ok=True)
    labelled_answers(config, COLUMNS[config.objective.type](), start).save(answers)
    return train_on_cluster(config, start, answers, out)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tied_llama, tmp_path_factory) -> dict[str, tuple[Path, dict[str, float]]]:
    """Each objective by one rank, two at a time."""
    folder = tmp_path_factory.mktemp("trained")
    with ThreadPoolExecutor(2) as threads:
        runs = {
            kind: threads.submit(train, settings(kind), tied_llama, folder / kind)
            for kind in COLUMNS
        }
        return {kind: (folder / kind, run.result()) for kind, run in runs.items()}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_training_leaves_an_ordinary_folder_and_nothing_else(trained, tied_llama, kind):
    folder, figures = trained[kind]
    assert figures["num_steps"] == 12
    names = {path.name for path in folder.iterdir()}
    extra = {"equilibrate_score.json"} if kind in SCORERS else {"generation_config.json"}
    assert names - extra == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    before = weights(tied_llama)
    assert any(
        (tensor != before[name]).any() for name, tensor in weights(folder).items() if name in before
    )


def test_sft_learns_the_answers(trained):
    # Untrained, over 44 words: log 44 = 3.8 nats or, with the wide weights here, more.
    assert trained["sft"][1]["final_loss"] < 3.5


def gains(folder: Path, start: Path) -> list[float]:
    """Nats a token by which a counting and a repeating answer became likelier."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    found = []
    for text in ("word3 word10 word11 word12", "word3 word31 word31"):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        after, before = (
            AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
            for path in (folder, start)
        )
        with torch.no_grad():
            found.append((before(ids, labels=ids).loss - after(ids, labels=ids).loss).item())
    return found


def test_dpo_learns_the_chosen_answers(trained, tied_llama):
    """The counting answers become likelier than they were, more than the repeating ones."""
    folder, figures = trained["dpo"]
    assert figures["examples"] == NUM_PAIRS
    assert figures["kept_fraction"] == 1.0
    chosen, rejected = gains(folder, tied_llama)
    assert chosen > 0.5
    assert chosen > rejected + 0.5


def test_scorers_learn_pairs_and_say_how_well(trained):
    reward, cost = trained["reward"][1], trained["cost"][1]
    assert reward["ranking_accuracy"] == cost["ranking_accuracy"] == 1.0
    assert reward["better_mean"] > reward["worse_mean"]
    assert cost["safe_mean"] < cost["unsafe_mean"]
    sidecar = read_sidecar(trained["cost"][0], kind="cost")
    for name in ("num_pairs", "sign_accuracy", "unsafe_mean", "safe_q95", "sign_accuracy_4"):
        assert sidecar.calibration[name] == cost[name]


def test_two_heads_of_one_model_learn_both_scores(trained):
    folder, figures = trained["scorer"]
    assert figures["reward_ranking_accuracy"] == figures["cost_ranking_accuracy"] == 1.0
    assert figures["cost_safe_mean"] < figures["cost_unsafe_mean"]
    for head in read_heads(folder):
        for name, value in head.calibration.items():
            assert figures[f"{head.kind}_{name}"] == value
    assert load_file(folder / "model.safetensors")["score.weight"].shape[0] == 2


def test_a_cost_model_learns_from_answers_that_are_labelled_one_by_one(tied_llama, tmp_path):
    both = preferences()
    singles = {
        "prompt": both["prompt"],
        "response": both["response_0"],
        "is_safe": both["is_response_0_safe"],
    }
    config, out = settings("cost"), tmp_path / "cost"
    answers = tmp_path / "answers"
    for folder in (answers, out):
        folder.mkdir()
    labelled_answers(config, singles, tied_llama).save(answers)
    figures = train_on_cluster(config, tied_llama, answers, out)
    assert figures["ranking_accuracy"] == 1.0
    assert figures["safe_mean"] < 0 < figures["unsafe_mean"]
    assert read_sidecar(out, kind="cost").calibration["num_answers"] == figures["num_answers"]


def test_a_scorer_goes_on_from_a_scorer_in_its_units(trained, tmp_path):
    start, out = tmp_path / "start", tmp_path / "out"
    shutil.copytree(trained["cost"][0], start)
    write_sidecar(start, ScorerSidecar(kind="cost", scale=2.0, bias=0.5, threshold=0.25))
    before = weights(start)
    figures = train(settings("cost", steps=1, lr=1e-6), start, out)
    again = train(settings("scorer", steps=1, lr=1e-6), trained["scorer"][0], tmp_path / "twins")
    for name in ("reward_better_mean", "cost_safe_mean"):
        assert again[name] == pytest.approx(trained["scorer"][1][name], abs=1e-3)
    after = weights(out)
    # No fresh head: one step of 1e-6 moves no weight by more, with Adam's first step and decay.
    assert after.keys() == before.keys()
    assert all(np.abs(after[name] - before[name]).max() < 1e-5 for name in before)
    found = read_sidecar(out, kind="cost")
    assert (found.scale, found.bias, found.threshold) == (2.0, 0.5, 0.25)
    assert found.calibration["safe_mean"] == figures["safe_mean"]
    scores = trained["cost"][1]
    assert figures["safe_mean"] == pytest.approx(2.0 * scores["safe_mean"] + 0.25, abs=1e-3)


def test_a_saved_scorer_gives_the_score_at_the_last_token(trained, tied_llama, tmp_path):
    """What transformers computes from the folder lies among the measured scores."""
    folder, figures = trained["cost"]
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.score.bias is None
    assert model.config.num_labels == 1
    costs = {}
    for response in (SAFE, HARMFUL):
        text = f"<bos> word8 word9 word10 {response} <eos>"
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            costs[response] = model(**inputs).logits.item()
    assert costs[SAFE] < costs[HARMFUL]
    for response, mean in ((SAFE, "safe_mean"), (HARMFUL, "unsafe_mean")):
        assert costs[response] == pytest.approx(figures[mean], abs=2 * figures["score_std"])


@pytest.mark.parametrize(
    ("kind", "zero_stage"),
    [("dpo", 0), ("dpo", 2), ("dpo", 3), ("cost", 0), ("cost", 3), ("scorer", 3)],
)
def test_ranks_and_zero_stages_learn_the_same(trained, tied_llama, tmp_path, kind, zero_stage):
    """A tensor's whole way from the start, against that of one rank."""
    one, figures = trained[kind]
    config = settings(kind, workers=2, zero_stage=zero_stage)
    found = train(config, tied_llama, tmp_path / "two")
    expected, reached = weights(one), weights(tmp_path / "two")
    before = weights(tied_llama)
    if kind in SCORERS:
        # The head, which the start lacks, is measured from nothing.
        before |= {"score.weight": np.zeros_like(expected["score.weight"])}
    before = {name: before[name] for name in expected}
    # Adam divides rounding by rounding where a gradient is almost 0.
    assert step_error(before, expected, reached) < 5e-3
    for name, figure in figures.items():
        assert found[name] == pytest.approx(figure, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_an_adapter_learns_beside_frozen_weights(tied_llama, tmp_path, kind):
    """Merged into an ordinary folder, and by itself as peft reads it; by two ranks as by one."""
    adapter = {"rank": 8, "alpha": 16}
    out = tmp_path / "out"
    figures = train(settings(kind, lr=5e-3, adapter=adapter), tied_llama, out)
    before, after = weights(tied_llama), weights(out)
    head = {"score.weight"} if kind == "reward" else set()
    moved = {name for name in after if name in head or (after[name] != before[name]).any()}
    assert moved == {name for name in before if "_proj." in name} | head
    parts = load_file(out / "adapter" / "adapter_model.safetensors")
    assert len(parts) == 2 * (len(moved) - len(head)) + len(head)
    if kind == "dpo":
        chosen, rejected = gains(out, tied_llama)
        assert chosen > rejected + 0.2
    else:
        assert figures["ranking_accuracy"] > 0.9
    config = settings(kind, lr=5e-3, adapter=adapter, workers=2, zero_stage=2)
    found = train(config, tied_llama, tmp_path / "two")
    for name, figure in figures.items():
        assert found[name] == pytest.approx(figure, rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_a_lost_rank_costs_nothing_but_time(tied_llama, tmp_path, kind):
    """Killed after the first checkpoint; every byte equals that of the undisturbed run."""
    config = settings(kind, workers=2, zero_stage=2)
    figures = train(config, tied_llama, tmp_path / "straight")
    broken = tmp_path / "broken"
    done, killed = threading.Event(), []

    def kill_one_rank() -> None:
        while not done.is_set() and not killed:
            if list(broken.glob("checkpoints/LATEST")):
                for child in psutil.Process().children(recursive=True):
                    if "RayTrainWorker" in "".join(child.cmdline()[:1]):
                        child.kill()
                        killed.append(child.pid)
                        return
            time.sleep(0.002)

    watcher = threading.Thread(target=kill_one_rank)
    watcher.start()
    try:
        assert train(config, tied_llama, broken) == figures
    finally:
        done.set()
        watcher.join()
    assert killed
    for file in ("model.safetensors", *(["equilibrate_score.json"] if kind == "reward" else [])):
        assert (broken / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()


def test_numbers_that_are_not_finite_stop_the_training(tied_llama, tmp_path):
    with pytest.raises(NumericsError, match=r"sft training: step \d+, gradient norm .* lr"):
        train(settings("sft", lr=1e30), tied_llama, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_more_workers_than_the_cluster_holds_are_refused(tied_llama, tmp_path):
    with pytest.raises(ResourceError, match="4 CPU"):
        train(settings("sft", workers=8), tied_llama, tmp_path / "out")
