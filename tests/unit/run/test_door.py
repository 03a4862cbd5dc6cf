from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from equilibrate import cli
from equilibrate.config.align import AlignConfig, Journey
from equilibrate.config.files import dump_config, parse_config, parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.errors import ConfigError, DataError
from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from equilibrate.run.door import check_inputs, check_journey
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer

OF_ONE_CLASS = ("fdc.mixture={GENERAL: 1.0}", "fdc.when_short=oversample", "constraint.scope=all")
ROWS = [{"prompt": f"how do i clean lamp {n} ?", "category": "GENERAL"} for n in range(4)]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = build_tokenizer()
    policy = build_model(tokenizer, seed=0)
    policy.config.max_position_embeddings = 4096
    policy.save_pretrained(folder / "policy")
    scorer = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    for kind in ("reward", "cost"):
        scorer.save_pretrained(folder / kind)
    for name in ("policy", "reward", "cost"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def inputs(models: Path, tmp_path: Path) -> Path:
    """A policy, two scorers and prompts, all in order."""
    for name in ("policy", "reward", "cost"):
        shutil.copytree(models / name, tmp_path / name)
    for kind in ("reward", "cost"):
        write_sidecar(tmp_path / kind, ScorerSidecar(kind=kind))
    write_rows(tmp_path / "prompts", ROWS)
    write_rows(tmp_path / "evaluation", [{"prompt": "who made the lamp ?", "category": "GENERAL"}])
    return tmp_path


def validate(inputs: Path, *overrides: str) -> int:
    names = ("policy", "reward", "cost", "prompts", "evaluation")
    given = (*(f"data.{n}={inputs / n}" for n in names), *OF_ONE_CLASS, *overrides)
    return cli.main(["validate", *given])


def test_inputs_in_order_are_accepted(inputs: Path) -> None:
    assert validate(inputs) == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fdc.mixture={GENERAL: 0.5, EHD: 0.5}", "class EHD a share (0.5), so the data must have"),
        ("fdc.when_short=error", "class GENERAL (4 prompts) must have at least"),
    ],
)
def test_classes_without_prompts_are_refused(
    override: str, message: str, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(inputs, override) == 3
    assert message in capsys.readouterr().err


AGREEMENT = {
    "judge": "refusals",
    "judge_name": "refusal rules",
    "options": {},
    "verdict": "harmful",
    "file": "f",
    "n": 2,
    "kappa": None,
    "look_alikes": None,
    "fit": None,
}


def agreement(inputs: Path, measured: dict[str, object]) -> str:
    """The setting that names a measured judge's file, which is written here."""
    (inputs / "agreement").write_text(json.dumps(AGREEMENT | measured))
    return f"judge.agreement=[{inputs / 'agreement'}]"


@pytest.mark.parametrize(
    ("measured", "code", "message"),
    [
        ({}, 0, ""),
        ({"fit": True}, 0, ""),
        ({"fit": False}, 2, "judge.name (refusals) is unfit"),
        ({"judge": "openai"}, 2, "is of judge 'openai'"),
        ({"options": {"limit": 1}}, 2, "options {'limit': 1}"),
        ({"verdict": None, "kappa": 3}, 3, "figure (3)"),
    ],
)
def test_a_judge_that_was_measured(
    measured: dict[str, object],
    code: int,
    message: str,
    inputs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert validate(inputs, "judge.name=refusals", agreement(inputs, measured)) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("measured", "code", "message"),
    [
        ({"verdict": "refused"}, 0, ""),
        ({"verdict": "refused", "fit": False}, 2, "judge.name (refusals) is unfit"),
        ({"verdict": "harmful"}, 2, "is of judge 'refusals'"),
        ({"verdict": "harmful", "judge": "oracle"}, 0, ""),
    ],
)
def test_of_a_combined_judge_each_was_measured(
    measured: dict[str, object],
    code: int,
    message: str,
    inputs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = ["judge.name=combined", "judge.options.harm.name=oracle"]
    assert validate(inputs, *named, agreement(inputs, measured)) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["judge.name=refusal"], "did you mean 'refusals'"),
        (["judge.name=refusals", "judge.options.limit=1"], "option of judge 'refusals'"),
        (["judge.name=cost_model"], "judge 'cost_model' needs the option folder"),
        (["judge.options.limit=1"], "name the judge"),
    ],
)
def test_a_judge_that_does_not_exist(
    overrides: list[str], message: str, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(inputs, *overrides) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["policy", "reward", "cost"])
def test_a_model_that_cannot_read_the_longest_rollout(
    name: str, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = inputs / name / "config.json"
    file.write_text(file.read_text().replace("4096", "1024"))
    assert validate(inputs) == 3
    assert f"{name}: its model has 1024 positions" in capsys.readouterr().err


def test_a_scorer_without_its_sidecar(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inputs / "reward" / "equilibrate_score.json").unlink()
    assert validate(inputs) == 3
    assert "reward/equilibrate_score.json: missing" in capsys.readouterr().err


def test_a_scorer_of_the_other_kind(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate(inputs, f"data.cost={inputs / 'reward'}") == 3
    assert "kind ('reward') must be 'cost'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["policy", "reward", "cost", "prompts", "evaluation", "ptx"])
def test_a_path_that_leads_nowhere(
    name: str, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(inputs, f"data.{name}={inputs / 'nowhere'}") == 3
    assert f"data.{name} (" in capsys.readouterr().err


def test_a_folder_that_is_no_model(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate(inputs, f"data.policy={inputs}") == 3
    assert "config.json: missing; give a Hugging Face model folder" in capsys.readouterr().err
    (inputs / "cost" / "model.safetensors").rename(inputs / "cost" / "pytorch_model.bin")
    assert validate(inputs) == 3
    assert "holds pytorch_model.bin and no *.safetensors" in capsys.readouterr().err


def test_a_policy_in_the_place_of_a_scorer(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(inputs / "policy" / "model.safetensors", inputs / "reward" / "model.safetensors")
    assert validate(inputs) == 3
    assert "score.weight" in capsys.readouterr().err


def test_a_bad_row_of_prompts(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(inputs / "prompts", [*ROWS, {"text": "hello", "category": "GENERAL"}])
    assert validate(inputs) == 3
    assert "prompts:5:" in capsys.readouterr().err


def test_bad_rows_up_to_the_limit_are_for_the_run_to_set_apart(inputs: Path) -> None:
    write_rows(inputs / "prompts", [*ROWS, {"text": "hello", "category": "GENERAL"}])
    assert validate(inputs, "data.max_rejected_fraction=0.2") == 0
    assert validate(inputs, "data.max_rejected_fraction=0.1") == 3


def test_an_evaluation_prompt_that_training_sees(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(inputs / "evaluation", ROWS[:1])
    assert validate(inputs) == 3
    assert "must not be in the training prompts" in capsys.readouterr().err


def test_an_evaluation_prompt_in_the_pretraining_text(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(inputs / "texts", [{"prompt": "how do i ask ?", "response": "so ."}])
    write_rows(inputs / "evaluation", [{"prompt": "How do I ask ?", "category": "GENERAL"}])
    assert validate(inputs, f"data.ptx={inputs / 'texts'}") == 3
    assert "must not be in the training prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("objective.type=cost",), "column 'is_safe' is missing"),
        (("objective.type=sft", "fdc.amounts={EHD: 3}"), "fdc.amounts: EHD (3)"),
        (("objective.type=sft", "data.evaluation=SAME"), "must not be in the training prompts"),
    ],
)
def test_what_an_objective_needs_of_its_data(
    inputs: Path, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...], says: str
) -> None:
    write_rows(inputs / "answers", [{"prompt": "how do i ask ?", "response": "so ."}])
    write_rows(inputs / "same", [{"prompt": "how do i ask ?", "category": "GENERAL"}])
    arguments = [setting.replace("SAME", str(inputs / "same")) for setting in settings]
    arguments += [f"data.policy={inputs / 'policy'}", f"data.train={inputs / 'answers'}"]
    assert cli.main(["validate", "--kind", "fit", *arguments]) == 3
    assert says in capsys.readouterr().err


def test_the_inputs_of_offline_training(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"data.{n}={inputs / n}" for n in ("policy", "evaluation")]
    arguments += [f"data.train={inputs / 'nowhere'}", "objective.type=sft"]
    assert cli.main(["validate", "--kind", "fit", *arguments]) == 3
    assert "data.train (" in capsys.readouterr().err


def test_what_this_machine_cannot_hold_is_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert (
        cli.main(["validate", "--config", "deploy/configs/sandbox.yaml", "learner.cpus=1e6"]) == 0
    )
    assert "warning: here the run needs" in capsys.readouterr().err


def test_rows_that_break_a_rule_are_let_pass_up_to_the_limit(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"how do i clean lamp {n} ?", "category": "GENERAL"} for n in range(100)]
    write_rows(inputs / "prompts", [*rows[:99], {"prompt": "", "category": "GENERAL"}])
    assert validate(inputs) == 0
    assert validate(inputs, "data.max_rejected_fraction=0") == 3
    assert "prompts:100: prompt ('') must not be empty" in capsys.readouterr().err
    assert not (inputs / "rejected.jsonl").exists()


def test_the_door_of_a_run_lists_them_there(inputs: Path) -> None:
    write_rows(inputs / "prompts", [*ROWS, {"prompt": "", "category": "GENERAL"}])
    data = {n: str(inputs / n) for n in ("policy", "reward", "cost", "prompts", "evaluation")}
    config = parse_config({"data": data | {"max_rejected_fraction": 0.19}})
    with pytest.raises(DataError, match=r"prompts:5: prompt \(''\).*\n1 of 5 rows .* allows 0"):
        check_inputs(config, inputs)
    assert "must not be empty" in (inputs / "rejected.jsonl").read_text()


@pytest.mark.parametrize(("kind", "file"), [("train", "sandbox.yaml"), ("fit", "fit.yaml")])
def test_the_built_in_world_is_refused_without_its_sizes(
    kind: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The defaults are those of a chat model."""
    amounts = ["fdc.amounts={EHD: 4}"] if kind == "fit" else []
    assert cli.main(["validate", "--kind", kind, *amounts]) == 2
    told = capsys.readouterr().err
    assert "rollout.max_model_len (2048) must be at most 128 in the built-in world" in told
    assert f"try --config deploy/configs/{file}" in told
    assert cli.main(["validate", "--kind", kind, "--config", f"deploy/configs/{file}"]) == 0


def test_a_start_in_the_built_in_world_is_a_policy_of_it(
    models: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = ["validate", "--config", "deploy/configs/sandbox.yaml"]
    assert cli.main([*world, f"sandbox.policy={inputs / 'nowhere'}"]) == 2
    assert "nowhere) must be the folder of a policy" in capsys.readouterr().err
    assert cli.main([*world, f"sandbox.policy={models / 'policy'}"]) == 0
    assert validate(inputs, "sandbox.notes=true") == 2
    assert "sandbox.notes (True) is for the built-in world" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["dpo", "sft"])
def test_broken_rows_of_labelled_answers_are_known_at_the_door(
    inputs: Path, objective: str
) -> None:
    pairs = {"prompt": ["p", "q"], "chosen": ["a", None], "rejected": ["b", "c"]}
    Dataset.from_dict(pairs).save_to_disk(str(inputs / "pairs"))
    data = {"train": str(inputs / "pairs"), "max_rejected_fraction": 0.1} | {
        n: str(inputs / n) for n in ("policy", "evaluation")
    }
    config = parse_settings(FitConfig, {"data": data, "objective": {"type": objective}})
    with pytest.raises(DataError, match=r"pairs:1: chosen \(None\) must be a string\n1 of 2 rows"):
        check_inputs(config, inputs)
    assert "chosen (None)" in (inputs / "rejected.jsonl").read_text()


def test_prompts_whose_answers_are_sampled_are_read_as_prompts(inputs: Path) -> None:
    data = {n: str(inputs / n) for n in ("policy", "reward", "cost", "evaluation")}
    data["train"] = str(inputs / "prompts")
    config = parse_settings(FitConfig, {"data": data, "objective": {"type": "ars"}})
    check_inputs(config, inputs)
    write_rows(inputs / "prompts", [*ROWS, {"prompt": "p", "category": "EHF"}])
    with pytest.raises(DataError, match=r"prompts:5: category \('EHF'\)"):
        check_inputs(config, inputs)


def test_a_text_of_pretraining_that_is_none_is_known_at_the_door(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "", "response": "a lamp is a thing ."}, {"prompt": "", "response": None}]
    Dataset.from_list(rows).save_to_disk(str(inputs / "texts"))
    assert validate(inputs, f"data.ptx={inputs / 'texts'}", "learner.ptx_coef=1") == 3
    assert "texts:1: response (None) must be a string" in capsys.readouterr().err


def journey_of(inputs: Path, **changes: object) -> Journey:
    pair: dict[str, object] = {
        "response_0": "so .",
        "is_response_0_safe": False,
        "better_response_id": 0,
        "response_1": "no .",
        "is_response_1_safe": True,
        "safer_response_id": 1,
    }
    write_rows(inputs / "pairs", [{"prompt": f"how {n} ?", **pair} for n in range(4)])
    tree = {
        **{name: str(inputs / name) for name in ("policy", "pairs", "prompts", "evaluation")},
        "output": str(inputs / "journey"),
        "steps": {
            "align": {
                "fdc": {"mixture": {"GENERAL": 1.0}, "when_short": "oversample"},
                "constraint": {"scope": "all"},
            }
        },
    }
    return Journey(parse_settings(AlignConfig, {**tree, **changes}))


def test_a_journey_in_order_is_accepted(inputs: Path) -> None:
    check_journey(journey_of(inputs))


def test_what_is_measured_on_teaches_no_model_of_a_journey(inputs: Path) -> None:
    journey = journey_of(inputs)
    write_rows(inputs / "evaluation", [{"prompt": "How 1 ?", "category": "GENERAL"}])
    with pytest.raises(DataError, match=r"step reward .*must not be in the training prompts"):
        check_journey(journey)


def test_other_settings_of_a_step_are_refused_once_its_model_was_used(inputs: Path) -> None:
    check_journey(journey_of(inputs))
    first, *_ = journey_of(inputs).steps()
    run = inputs / "journey" / "reward"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(first.config))
    changed = journey_of(inputs, common={"seed": 2})
    check_journey(changed)  # it would be made anew, and nothing hangs on it yet
    latest = inputs / "journey" / "align" / "checkpoints" / "LATEST"
    latest.parent.mkdir(parents=True)
    latest.touch()
    check_journey(journey_of(inputs))
    with pytest.raises(ConfigError, match=r"step reward .*seed \(2\) must stay what it was"):
        check_journey(changed)
