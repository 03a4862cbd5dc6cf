from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from equilibrate.errors import ConfigError
from equilibrate.evaluation.judge_plugins import (
    GROUP,
    check_judge,
    judge_names,
    load_judge,
    source_of,
)
from equilibrate.evaluation.judges import RefusalMatcher, Verdict, helpfulness_by
from equilibrate.sandbox.words import STEP_WORDS
from equilibrate.sandbox.world import build_world
from equilibrate.types import Category, Prompt

OURS = ["combined", "cost_model", "guard", "openai", "oracle", "refusals"]
THEIRS = """
from equilibrate.evaluation.judges import Verdict

class Strict:
    name = "strict"

    def __init__(self, limit: float = 0.5, **others):
        self.limit = limit

    def judge(self, prompts, responses):
        verdict = Verdict(helpfulness=self.limit, harmful=True, refused=False, malformed=False)
        return [verdict] * len(prompts)
"""


def prompt(text: str, category: Category = Category.EHD) -> Prompt:
    return Prompt(prompt_id="p", text=text, token_ids=(1,), category=category)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, points: str) -> None:
    """What pip leaves of a package that registers entry points, and a module beside it."""
    metadata = folder / f"{distribution}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    (folder / "strict_judges.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "strict_judges", raising=False)


def test_ours_are_there_without_any_entry_point():
    assert judge_names() == OURS
    assert isinstance(load_judge("refusals"), RefusalMatcher)


def test_the_oracle_judges_the_world_of_its_seed():
    risky = [{e.word for e in build_world(s).entities.values() if e.is_risky} for s in (0, 1)]
    word = min(risky[0] - risky[1])
    question, step = prompt(f"how do i clean the {word} ?"), min(STEP_WORDS)
    assert load_judge("oracle").judge([question], [step])[0].harmful
    assert load_judge("oracle", seed=0).judge([question], [step])[0].harmful
    assert not load_judge("oracle", seed=1).judge([question], [step])[0].harmful


def test_other_packages_add_judges(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "strict_judges", "strict = strict_judges:Strict")
    assert judge_names() == [*OURS, "strict"]
    judge = load_judge("strict", limit=0.25, anything="goes")
    wanted = Verdict(helpfulness=0.25, harmful=True, refused=False, malformed=False)
    assert judge.judge([prompt("a")], ["b"]) == [wanted]


def test_a_name_that_two_packages_claim_is_refused(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "strict_judges", "oracle = strict_judges:Strict")
    with pytest.raises(ConfigError, match=r"'oracle'.*oracle_judge and strict_judges:Strict"):
        load_judge("oracle")


def test_a_package_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "strict_judges", "strict = strict_judges:Absent")
    with pytest.raises(ConfigError, match=r"'strict'.*strict_judges:Absent.*Absent"):
        load_judge("strict")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "oracel",
            {},
            r"judge \('oracel'\).*'oracle'.*combined, cost_model, guard, openai, oracle, refusals",
        ),
        ("oracle", {"sead": 1}, r"option of judge 'oracle' \('sead'\).*'seed'"),
        ("oracle", {"seed": "1"}, r"option seed \('1'\) of judge 'oracle'.*int"),
        ("oracle", {"seed": True}, r"option seed \(True\).*int"),
        ("refusals", {"seed": 1}, "'seed'.*none at all"),
        ("cost_model", {}, "'cost_model' needs the option folder; .*folder, reward, batch_size"),
        ("cost_model", {"folder": "x", "batch_size": 0}, r"batch_size \(0\)"),
        ("openai", {"base_url": "u"}, "'openai' needs the option model"),
        ("openai", {"base_url": "u", "model": "m"}, r"base_url \('u'\) must start with http"),
        (
            "openai",
            {"base_url": "http://u", "model": "m", "timeout_seconds": "9"},
            r"timeout_seconds \('9'\).*float",
        ),
        (
            "guard",
            {"base_url": "http://u", "model": "m", "form": "f", "template_arguments": "x"},
            r"template_arguments \('x'\) .* of type Mapping \{key",
        ),
        ("guard", {"base_url": "http://u", "model": "m", "form": None}, "needs the option form"),
        ("cost_model", {"folder": "f", "text": ["a"]}, r"text \(\['a'\]\) .* of type Mapping"),
    ],
)
def test_messages_name_what_is_wrong_and_what_is_right(name, options, message):
    with pytest.raises(ConfigError, match=message):
        load_judge(name, **options)


def test_harm_refusals_and_helpfulness_each_by_a_judge_that_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "strict_judges", "strict = strict_judges:Strict")
    harm = {"name": "strict", "options": {"limit": 0.25}}
    judge = load_judge("combined", harm=harm)
    assert judge.name == "harm by strict; refusal by refusal rules"
    answers = ["I cannot help with that.", "Boil it."]
    found = judge.judge([prompt("a"), prompt("b")], answers)
    # `strict` calls everything harmful and nothing a refusal.
    assert [(v.harmful, v.refused, v.helpfulness) for v in found] == [
        (True, True, 0.25),
        (True, False, 0.25),
    ]
    helpful = {"name": "strict", "options": {"limit": 1.0}}
    judge = load_judge("combined", harm={"name": "refusals"}, refusal=harm, helpfulness=helpful)
    found = judge.judge([prompt("a"), prompt("b")], answers)
    assert [(v.harmful, v.refused, v.helpfulness) for v in found] == [
        (False, False, 1.0),
        (True, False, 1.0),
    ]
    assert judge.name == "harm by refusal rules; refusal by strict; helpfulness by strict"
    assert judge.source_of("harmful").name == "refusal rules"
    assert judge.source_of("partly_refused").name == "strict"
    assert helpfulness_by(judge) == "strict"
    assert helpfulness_by(load_judge("combined", harm={"name": "refusals"})) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'combined' needs the option harm"),
        ({"harm": None}, "'combined' needs the option harm"),
        ({"harm": {"name": "refusals"}, "refusal": "refusals"}, r"refusal \('refusals'\)"),
        ({"harm": {"name": "combined"}}, "option harm .* must name another judge"),
        ({"harm": {"name": "refusals", "agreement": ["a"]}}, "option harm .* nothing else"),
        ({"harm": {"name": "refusal"}}, "did you mean 'refusals'"),
        ({"harm": {"name": "refusals"}, "refusal": {"name": "oracle", "options": {"s": 1}}}, "'s'"),
        ({"harm": {"nam": "refusals"}}, "nam"),
        ({"harm": "refusals"}, "refusals"),
    ],
)
def test_what_cannot_be_combined_is_refused_before_a_model_is_loaded(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_judge("combined", options)


def test_of_a_combined_judge_each_verdict_is_of_one_of_its_judges() -> None:
    harm = {"name": "cost_model", "options": {"folder": "f"}}
    assert source_of("harmful", "combined", {"harm": harm}) == ("cost_model", {"folder": "f"})
    assert source_of("refused", "combined", {"harm": harm}) == ("refusals", {})
    assert source_of("refused", "cost_model", {"folder": "f"}) == ("cost_model", {"folder": "f"})


HEAVY = {"torch", "transformers", "openai", "ray", "datasets"}


def test_evaluation_imports_without_anything_heavy():
    code = "import equilibrate.evaluation, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert not HEAVY & loaded
