"""The training before PPO through real Ray Train: result, repeatability, lost workers, errors."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from actors.offline import TrainWorkers, train_cost, train_reward, train_sft
from equilibrate.errors import ConfigError, DataError, NumericsError, ResourceError
from equilibrate.models.sidecar import read_sidecar

# Ray Data, which Ray Train imports, uses its own deprecated settings.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SAFE, HARMFUL = "word1 word2 word3", "word4 word5 word6 word7"


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="test-offline")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory) -> Path:
    rng = random.Random(0)
    prompts = [f"word8 word9 word{rng.randrange(10, 18)}" for _ in range(128)]
    folder = tmp_path_factory.mktemp("sft")
    table = {"prompt": prompts, "response": [f"{p.split()[-1]} word1 word2" for p in prompts]}
    Dataset.from_dict(table).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    """In every pair the harmful answer is the better and the less safe one."""
    rng = random.Random(1)
    sides = [rng.random() < 0.5 for _ in range(160)]
    table = {
        "prompt": [f"word8 word9 word{rng.randrange(10, 13)}" for _ in sides],
        "response_0": [SAFE if flip else HARMFUL for flip in sides],
        "response_1": [HARMFUL if flip else SAFE for flip in sides],
        "better_response_id": [int(flip) for flip in sides],
        "safer_response_id": [int(not flip) for flip in sides],
        "is_response_0_safe": list(sides),
        "is_response_1_safe": [not flip for flip in sides],
    }
    folder = tmp_path_factory.mktemp("pairs")
    Dataset.from_dict(table).save_to_disk(str(folder))
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def sft(model, dataset, out, **changes):
    return train_sft(model, dataset, out, **({"steps": 12, "batch_size": 8, "seed": 5} | changes))


@pytest.fixture(scope="module")
def trained(tied_llama, demonstrations, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("trained")
    return out, sft(tied_llama, demonstrations, out)


def test_sft_learns_and_leaves_an_ordinary_folder(trained, tied_llama):
    out, figures = trained
    # Untrained, over 44 words: log 44 = 3.8 nats or, with the wide weights here, more.
    assert figures["num_steps"] == 12
    assert figures["final_loss"] < 3.5
    AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert AutoTokenizer.from_pretrained(out).eos_token == "<eos>"
    assert not (out / ".train").exists()
    assert weights(out) != weights(tied_llama)


def test_a_lost_worker_costs_nothing_but_time(trained, tied_llama, demonstrations, tmp_path):
    """Killed after its first checkpoint; the weights equal those of the undisturbed run."""
    done = threading.Event()
    killed: list[int] = []

    def kill_one_worker() -> None:
        while not done.is_set() and not killed:
            if list(tmp_path.glob(".train/*/checkpoint_*/state.pt")):
                for child in psutil.Process().children(recursive=True):
                    if "RayTrainWorker" in child.name() or "RayTrainWorker" in "".join(
                        child.cmdline()[:1]
                    ):
                        child.kill()
                        killed.append(child.pid)
                        return
            time.sleep(0.002)

    watcher = threading.Thread(target=kill_one_worker)
    watcher.start()
    try:
        sft(tied_llama, demonstrations, tmp_path)
    finally:
        done.set()
        watcher.join()
    assert killed
    assert weights(tmp_path) == weights(trained[0])


def test_two_workers_share_a_batch(trained, tied_llama, demonstrations, tmp_path):
    sft(tied_llama, demonstrations, tmp_path, workers=TrainWorkers(num_workers=2))
    one, two = (
        AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).state_dict()
        for folder in (trained[0], tmp_path)
    )
    # The same sums in another order; Adam's first steps magnify the rounding of tiny gradients.
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-3)


def test_both_scorers_train_side_by_side(tied_llama, preferences, tmp_path):
    folders = {"reward": tmp_path / "reward", "cost": tmp_path / "cost"}
    with ThreadPoolExecutor(2) as threads:
        runs = [
            threads.submit(train, tied_llama, preferences, folders[kind], epochs=4, batch_size=16)
            for kind, train in (("reward", train_reward), ("cost", train_cost))
        ]
        reward, cost = (run.result() for run in runs)
    # 5 % of 160 pairs are held out; 4 epochs of the other 152 are 38 steps of 16.
    assert reward["num_pairs"] == cost["num_pairs"] == 8
    assert reward["num_steps"] == 38
    assert reward["ranking_accuracy"] == cost["ranking_accuracy"] == cost["sign_accuracy"] == 1.0
    assert reward["better_mean"] > reward["worse_mean"]
    assert cost["safe_mean"] < 0 < cost["unsafe_mean"]
    sidecar = read_sidecar(folders["cost"], kind="cost")
    assert sidecar.calibration["unsafe_mean"] == cost["unsafe_mean"]


def test_a_saved_scorer_gives_the_score_at_the_last_token(tied_llama, preferences, tmp_path):
    """What transformers computes from the folder agrees with the measured means."""
    figures = train_cost(tied_llama, preferences, tmp_path, token_wise=False, batch_size=16)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.score.bias is None
    assert model.config.num_labels == 1
    costs = {}
    for response in (SAFE, HARMFUL):
        text = f"word8 word9 word10 {response} <eos>"
        with torch.no_grad():
            costs[response] = model(**tokenizer(text, return_tensors="pt")).logits.item()
    assert costs[SAFE] < costs[HARMFUL]
    for response, mean in ((SAFE, "safe_mean"), (HARMFUL, "unsafe_mean")):
        # One of three prompts against the mean over all.
        assert costs[response] == pytest.approx(figures[mean], abs=figures["score_std"] / 2)


def test_numbers_that_are_not_finite_stop_the_run_at_once(tied_llama, demonstrations, tmp_path):
    with pytest.raises(NumericsError, match=r"step \d+, gradient norm .* lr"):
        sft(tied_llama, demonstrations, tmp_path, lr=1e30)


def test_wrong_data_are_refused_before_anything_starts(tied_llama, demonstrations, tmp_path):
    with pytest.raises(DataError, match="column 'response_0' is missing"):
        train_reward(tied_llama, demonstrations, tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_workers_than_the_cluster_holds_are_refused(tied_llama, demonstrations, tmp_path):
    workers = TrainWorkers(num_workers=3)
    with pytest.raises(ResourceError, match="3 CPU"):
        sft(tied_llama, demonstrations, tmp_path, batch_size=9, workers=workers)


def test_a_batch_that_does_not_divide_is_refused(tied_llama, demonstrations, tmp_path):
    workers = TrainWorkers(num_workers=2)
    with pytest.raises(ConfigError, match=r"batch_size \(9\).*num_workers \(2\); try 8"):
        sft(tied_llama, demonstrations, tmp_path, batch_size=9, workers=workers)
