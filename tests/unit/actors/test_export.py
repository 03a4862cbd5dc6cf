"""A folder of a checkpoint that was written as DeepSpeed lays it out without shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from equilibrate.config.files import dump_config
from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError
from equilibrate.report.card import front_matter
from equilibrate.run.checkpoint import CheckpointStore
from equilibrate.run.contents import Contents
from tests.tiny_models import write_models

pytest.importorskip("ray", reason="what a run started from is found by what starts it")

from actors.export import export


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(models: Path, tmp_path: Path) -> Path:
    """A run that is under way: checkpoints of 2 and 4, all weights 2 and 4; the average 20, 40."""
    run = tmp_path / "run"
    data = {name: str(models / name) for name in ("policy", "reward", "cost")}
    config = TrainConfig.model_validate({"output": str(run), "data": data | {"prompts": "p.jsonl"}})
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(config))
    (run / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"iteration": i, "reward": i / 10, "safety_cost": 2.0 - i, "cost": 0}) + "\n"
            for i in range(5)
        )
    )
    weights = load_file(models / "policy" / "model.safetensors")
    content = Contents(run / "stages").of(models / "policy")

    def write(folder: Path, number: float) -> None:
        engine = folder / "learner" / "policy" / "engine"
        engine.mkdir(parents=True)
        state = {f"model.{name}": torch.full_like(t, number) for name, t in weights.items()}
        torch.save({"module": state}, engine / "mp_rank_00_model_states.pt")
        average = {name: torch.full_like(t, 10 * number) for name, t in weights.items()}
        save_file(average, folder / "learner" / "average.safetensors")
        fixed = {"data.policy": f"content {content}"}
        (folder / "driver.json").write_text(json.dumps({"fixed": fixed}))

    with CheckpointStore(run / "checkpoints", keep=2, versions={"torch": "1.2.3"}) as store:
        for number in (1, 2, 4):
            store.save(number, lambda folder, n=number: write(folder, n))
    return run


def only_value(folder: Path) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (value,) = {float(number) for p in model.parameters() for number in p.detach().unique()}
    return value


@pytest.mark.parametrize(("which", "iteration"), [("latest", 4), ("2", 2), ("best", 4)])
def test_transformers_loads_what_was_asked_for(
    run: Path, tmp_path: Path, which: str, iteration: int
) -> None:
    # Costs are 2, 1, 0, -1: in the mean 1.5 before iteration 2, and 0.5 before 4; budget 0.5.
    change(run, constraint={"budget": 0.5})
    out = tmp_path / "out"
    assert export(run, out, which) == 0
    assert only_value(out) == iteration
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert front_matter(out)["equilibrate"]["iteration"] == iteration
    card = (out / "README.md").read_text()
    assert f"iteration {iteration}, of a run that had not ended" in card
    assert "torch 1.2.3" in card
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def change(run: Path, **settings: object) -> None:
    tree = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in settings.items():
        tree[key] |= value
    (run / "config.yaml").write_text(yaml.safe_dump(tree))


def test_a_run_that_averages_gives_the_average(run: Path, tmp_path: Path) -> None:
    change(run, learner={"average_decay": 0.9})
    export(run, tmp_path / "out", "2")
    assert only_value(tmp_path / "out") == 20


def test_an_adapter_is_merged_and_written_by_itself(
    run: Path, models: Path, tmp_path: Path
) -> None:
    """W + (8 / 2) B A, of A and B full of 1 and 0.25: 2 more everywhere in the adapted layers."""
    change(run, learner={"adapter": {"rank": 2, "alpha": 8}})
    start = load_file(models / "policy" / "model.safetensors")
    adapted = [name for name in start if "_proj." in name]
    trained = {}
    for name in adapted:
        rows, columns = start[name].shape
        layer = name.removesuffix("weight")
        trained[f"model.{layer}lora_A"] = torch.ones(2, columns)
        trained[f"model.{layer}lora_B"] = torch.full((rows, 2), 0.25)
    # As a checkpoint of this run would hold it.
    file = "learner/policy/engine/mp_rank_00_model_states.pt"
    with CheckpointStore(run / "checkpoints", keep=2, versions={"torch": "1.2.3"}) as store:
        old = run / "checkpoints" / "iteration-4"

        def write(folder: Path) -> None:
            (folder / file).parent.mkdir(parents=True)
            torch.save({"module": trained}, folder / file)
            (folder / "driver.json").write_text((old / "driver.json").read_text())

        store.save(5, write)
    # The policy of a finished run is no longer what lies below the adapter.
    (run / "aligned").mkdir()
    (run / "aligned" / "config.json").write_text("{}")
    export(run, tmp_path / "out", "5")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, before in start.items():
        expected = before + 2 if name in adapted else before
        torch.testing.assert_close(written[name], expected)
    parts = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert len(parts) == len(trained)


def test_what_is_not_there_is_refused_with_what_is(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"no checkpoint of iteration 1 .*there are 2, 4"):
        export(run, out, "1")
    with pytest.raises(ConfigError, match=r"'last'\) must be latest, best .*: 2, 4"):
        export(run, out, "last")
    with pytest.raises(DataError, match=r"bound \(0\).*nearest is 4 with 0.5"):
        export(run, out, "best")
    (run / "checkpoints" / "iteration-2" / "driver.json").write_text("{}")
    with pytest.raises(DataError, match=r"driver.json differs from its sha256.*there are 2, 4"):
        export(run, out, "2")
    assert not out.exists()


def test_other_content_is_never_overwritten(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(run, out, "2")
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert export(run, out, "2") == 0
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="exists and is not empty"):
        export(run, out, "4")
    assert only_value(out) == 2


def test_another_start_or_a_run_of_fit_is_refused(run: Path, models: Path, tmp_path: Path) -> None:
    change(run, data={"policy": str(models / "reward")})
    with pytest.raises(DataError, match=r"is not what the run in .* started from any more"):
        export(run, tmp_path / "out", "latest")
    fit = FitConfig.model_validate({"fdc": {"amounts": {"EHD": 1}}})
    (run / "config.yaml").write_text(dump_config(fit))
    with pytest.raises(DataError, match="is a run of `fit`"):
        export(run, tmp_path / "out", "latest")
