from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from equilibrate.errors import ConfigError
from equilibrate.evaluation.judge_plugins import GROUP, judge_names, load_judge
from equilibrate.evaluation.judges import RefusalMatcher, Verdict
from equilibrate.sandbox.words import STEP_WORDS
from equilibrate.sandbox.world import build_world
from equilibrate.types import Category, Prompt

OURS = ["cost_model", "openai", "oracle", "refusals"]
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
        ("oracel", {}, r"judge \('oracel'\).*'oracle'.*cost_model, openai, oracle, refusals"),
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
    ],
)
def test_messages_name_what_is_wrong_and_what_is_right(name, options, message):
    with pytest.raises(ConfigError, match=message):
        load_judge(name, **options)


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
