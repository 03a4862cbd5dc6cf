"""The card of an exported policy: what it says, and what no file's words can make of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from equilibrate.report import write_report
from equilibrate.report.card import base_model, escape, front_matter, ingredients, render_card
from equilibrate.report.inputs import read_run
from equilibrate.run.contents import CARD_FILE, CARD_MARK, Contents
from tests.unit.report.runs import CANARY, write_run

EVIL = "a|b`c\n## no <script>alert(1)</script> [x](http://y) www.z *w*.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of a user's own model and data, whose names are not kind."""
    folder = write_run(tmp_path / "run")
    (folder / "aligned").mkdir()
    (folder / "aligned" / "config.json").write_text("{}")
    change(folder / "config.yaml", data={"policy": "/models/chat", "licences": {}})
    change(
        folder / "results.json",
        base_model="chat",
        inputs=[
            {"key": "policy", "of": "", "name": "chat", "content": "0" * 32, "licence": "mit"},
            {"key": "prompts[1]", "of": "", "name": EVIL, "content": "1" * 32, "licence": ""},
            {"key": "train", "of": "cost", "name": "p.json", "content": "2" * 32, "licence": ""},
        ],
    )
    (folder / "inputs.json").write_text(json.dumps({"data.prompts": "1" * 32}))
    return folder


def change(file: Path, **content: Any) -> None:
    tree = yaml.safe_load(file.read_text()) | content
    file.write_text(json.dumps(tree))


def card_of(run: Path) -> str:
    write_report(run)
    return (run / "aligned" / CARD_FILE).read_text()


def test_it_says_what_the_run_recorded(run: Path) -> None:
    card = card_of(run)
    meta = front_matter(run / "aligned")
    assert meta["base_model"] == "chat"
    assert meta["library_name"] == "transformers"
    assert {"equilibrate", "ppo", "safe-rlhf"} <= set(meta["tags"])
    assert meta["data_licences"] == {"chat": "mit"}
    results = json.loads((run / "results.json").read_text())
    assert f"| lambda | {results['multiplier_final']:.4g} |" in card
    assert f"| KL to the start, nats per token | {results['kl_final']:.4g} |" in card
    held = "within" if results["cost_mean"] <= 0 else "NOT held"
    assert f"| bound of the cost | 0: {held} |" in card
    assert "| GENERAL | 30.0 % |" in card
    assert "| train of the cost model | " + "2" * 32 + " | not stated |" in card
    assert "Judged by oracle; judge agreement\\: exact by construction." in card
    aligned = results["aligned"]["harmful_compliance"]["IHD"]["mean"]
    line = next(line for line in card.splitlines() if "| Harmful compliance | IHD |" in line)
    assert f"| {100 * aligned:.1f} % |" in line
    assert "torch 2.13.0" in card


@pytest.mark.parametrize("checkpoint", [None, 40])
def test_a_bound_on_the_share_is_told_as_one_on_the_cost_is(
    run: Path, checkpoint: int | None
) -> None:
    change(run / "config.yaml", constraint={"budget": None, "max_unsafe_share": 0.05})
    change(run / "results.json", cost_budget=None, unsafe_share=0.25, iterations=120)
    rows = [{"iteration": i, "unsafe_fraction": 0.0625, "multiplier": 2.5} for i in range(120)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = render_card(read_run(run), checkpoint=checkpoint)
    assert "- safe-rlhf\n" in card
    assert "by PPO with a Lagrange multiplier on the share of unsafe answers, advantages" in card
    share = 0.25 if checkpoint is None else 0.0625
    assert f"| share of unsafe answers by the cost model, {LAST} | {share} |" in card
    assert "| bound of the share of unsafe answers | 0.05: NOT held |" in card
    assert "| lambda | " in card
    assert "What is bounded is the share of unsafe answers by a learned model" in card


LAST = "mean of the last 20 iterations at most"


def test_no_name_of_a_file_is_markdown(run: Path) -> None:
    card = card_of(run)
    (line,) = (line for line in card.splitlines() if "alert" in line)
    assert "<script" not in line.replace("\\<", "")
    assert len(re.findall(r"(?<!\\)\|", line)) == 5  # four cells: no name begins a fifth
    assert "\n## no" not in card
    assert CANARY not in card
    assert "in the garden" not in card  # of the prompts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain-1.2/3, 4%", "plain-1.2/3, 4%"),
        ("a|b", r"a\|b"),
        ("<b>`x`", r"\<b\>\`x\`"),
        ("a\n\n# b\x00", r"a \# b"),
        (r"\*", r"\\\*"),
        ("http://www.x", r"http\://www\.x"),
    ],
)
def test_escape_by_hand(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_a_licence_named_later_counts_when_the_report_is_written_again(run: Path) -> None:
    assert "cc-by-4.0" not in card_of(run)
    change(run / "config.yaml", data={"licences": {"prompts": "cc-by-4.0"}})
    assert "| cc-by-4.0 |" in card_of(run)
    assert front_matter(run / "aligned")["data_licences"][EVIL.replace("\n", " ")] == "cc-by-4.0"


def test_the_card_is_no_part_of_the_model_and_nobody_elses_is_touched(
    run: Path, tmp_path: Path
) -> None:
    before = Contents(tmp_path).of(run / "aligned")
    assert CARD_MARK in card_of(run)
    assert Contents(tmp_path).of(run / "aligned") == before
    (run / "aligned" / CARD_FILE).write_text("# Mine\n")
    assert card_of(run) == "# Mine\n"


def test_a_scorer_or_an_unfinished_run_has_no_card(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_report(run)
    assert not (run / "aligned").exists()


def test_an_earlier_checkpoint_does_not_borrow_the_figures_of_the_end(run: Path) -> None:
    change(run / "results.json", stopped_early=None)
    record = read_run(run)
    at_40 = render_card(record, checkpoint=40)
    assert "checkpoint of iteration 40, not the end of the run (iteration 120)" in at_40
    assert f"| lambda | {record.metrics[39]['multiplier']:.4g} |" in at_40
    # There is a point of the trace at 40, and none at 41.
    assert "| Harmful compliance | IHD |" in at_40
    assert "Nobody measured this checkpoint" in render_card(record, checkpoint=41)
    assert render_card(record, checkpoint=120) == render_card(record)


def test_names_of_base_models(tmp_path: Path) -> None:
    cached = tmp_path / "models--org--chat-1b" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    assert base_model(cached) == "org/chat-1b"
    made = tmp_path / "sft" / "aligned"
    made.mkdir(parents=True)
    assert base_model(made) == "aligned"
    (made / CARD_FILE).write_text(f"---\n{CARD_MARK}\nbase_model: org/chat\n---\n")
    assert base_model(made) == "org/chat"


def test_what_made_the_scorers_is_listed_too(tmp_path: Path) -> None:
    for name, data in {
        "cost": {"policy": "/m/chat", "train": "/d/pairs.jsonl", "licences": {"train": "cc0-1.0"}},
        "align": {"policy": "/m/chat", "cost": str(tmp_path / "cost" / "cost"), "prompts": "/d/p"},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({"data": data}))
        keys = {f"data.{key}": key for key in data if key != "licences"}
        (tmp_path / name / "inputs.json").write_text(json.dumps(keys))
    found = [(row["of"], row["key"], row["licence"]) for row in ingredients(tmp_path / "align")]
    assert found == [
        ("", "policy", ""), ("", "cost", ""), ("cost", "train", "cc0-1.0"), ("", "prompts", ""),
    ]  # fmt: skip


def test_a_start_in_the_built_in_world_is_no_input_of_the_user(run: Path) -> None:
    """Its folder is named in the settings, and is made of that world's words alone."""
    change(run / "config.yaml", data={}, sandbox={"seed": 3, "policy": "runs/one/aligned"})
    (run / "inputs.json").write_text(json.dumps({"sandbox.policy": "0" * 32}))
    assert list(ingredients(run)) == []
    change(run / "results.json", base_model="", inputs=[])
    card = card_of(run)
    assert "from a policy that was aligned in the built-in world by PPO" in card
    assert "All of it was written by equilibrate's built-in world, seed 3." in card
    assert "speaks the language of a built-in toy world" in card
