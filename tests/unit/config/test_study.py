"""A study at the door: what it may say, and what its messages say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from equilibrate.config.files import parse_settings
from equilibrate.config.study import StudyConfig, load_study, read_base, split_figure
from equilibrate.errors import ConfigError
from tests.unit.study.studies import TREE, study, tree, with_question


def refused(written: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_settings(StudyConfig, written)
    return str(caught.value)


def with_claim(**changes: object) -> dict:
    return with_question(claims=[{**TREE["questions"][0]["claims"][0], **changes}])


def with_arm(name: str, **changes: object) -> dict:
    written = tree()
    written["arms"][name] |= changes
    return written


def test_a_good_study():
    config = study()
    question = config.questions[0]
    assert question.arms == ("few", "many", "offline")
    assert question.tabulated == ("harm", "training.kept_fraction", "over_refusal")
    assert question.claims[0].of == ("many",)  # one name is a list of one
    assert config.label_of("many") == "many rows"
    assert config.label_of("few") == "few"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"of": "mny"}, "Q1.claims.0.of ('mny') must be an arm; did you mean 'many'?"),
        (
            {"against": "zzz"},
            "Q1.claims.0.against ('zzz') must be an arm; arms: few, many, offline",
        ),
        (
            {"figure": "hram"},
            "Q1.claims.0 ('hram') must begin with harm, over_refusal, helpfulness, malformed, "
            "training; did you mean 'harm'?",
        ),
        (
            {"expect": "same"},
            "Q1.claims.0.margin (0.0) must be above 0 where `same` is expected: no two runs are "
            "equal; try 0.05",
        ),
        ({"figure": ""}, "Q1.claims.0 must have one of figure and front; try figure: harm"),
        (
            {"compare": "equal_harm"},
            "Q1.claims.0.compare (equal_harm) needs a front; try front: [harm, "
            "helpfulness.GENERAL]",
        ),
        (
            {"front": ["harm", "over_refusal"]},
            "Q1.claims.0 must have one of figure and front; try figure: harm",
        ),
        (
            {"of": ["few", "many"]},
            "Q1.claims.0.of and against (few, many, few) must be one arm each for a figure; "
            "to compare several arms give front",
        ),
        (
            {"figure": "", "front": ["over_refusal", "harm"]},
            "Q1.claims.0.front (over_refusal, harm) must be a harm figure and one of helpfulness "
            "or over_refusal; try [harm, helpfulness.GENERAL]",
        ),
        (
            {"against_figure": "malformed"},
            "Q1.claims.0.against_figure ('malformed') must have the unit of figure; try harm or "
            "harm.CELL, and no front",
        ),
    ],
)
def test_claims_are_checked(changes: dict, message: str):
    assert refused(with_claim(**changes)) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lines": {"a": ["fw"]}}, "Q1.lines.a ('fw') must be an arm; did you mean 'few'?"),
        ({"fronts": {"a": ["fw"]}}, "Q1.fronts.a ('fw') must be an arm; did you mean 'few'?"),
        ({"figures": ["helpfulness"]}, "Q1.figures ('helpfulness') must go on; try helpfulness.G"),
        (
            {"lines": {"a": ["offline"]}},
            "arms.offline.x (None) must be a number above 0 (log_x is on): it is on a curve of Q1",
        ),
    ],
)
def test_questions_are_checked(changes: dict, message: str):
    assert refused(with_question(**changes)).startswith(message)


def test_a_logarithm_needs_positive_places():
    assert refused(with_arm("few", x=0)).startswith("arms.few.x (0.0) must be a number above 0")
    written = with_arm("few", x=0)
    written["questions"][0]["log_x"] = False
    parse_settings(StudyConfig, written)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (tree(seeds=[0, 1, 0]), "seeds (0) must be distinct"),
        (tree(questions=TREE["questions"] * 2), "questions.id ('Q1') must be distinct"),
        (with_arm("few", label="many rows"), "arms.label ('many rows') must be distinct"),
        (with_arm("few", label="offline"), "arms.label ('offline') must be distinct"),
    ],
)
def test_names_are_unique(written: dict, message: str):
    assert refused(written).startswith(message)


@pytest.mark.parametrize(
    ("arm", "start", "says"),
    [
        ("many", "fw", "arms.many.start ('fw') must be an arm that stands before it and has no"),
        ("many", "offline", "has no start itself; these do: few"),
        ("few", "few", "has no start itself; these do: none"),
    ],
)
def test_a_start_is_an_arm_before(arm: str, start: str, says: str):
    assert says in refused(with_arm(arm, start=start))


def test_a_start_has_none_itself():
    written = with_arm("many", start="few")
    written["arms"]["offline"] |= {"start": "many"}
    assert "arms.offline.start ('many') must be an arm" in refused(written)
    written["arms"]["offline"]["start"] = "few"
    assert parse_settings(StudyConfig, written).arms["offline"].start == "few"


def test_ordinary_mistakes_are_named_as_everywhere():
    assert refused(tree(seeds=[])).startswith("seeds ([]): ")
    assert refused(tree(seeds=[-1])).startswith("seeds.0 (-1): ")
    assert refused(tree(arms={})).startswith("arms ({}): ")
    assert refused(tree(sedes=[1])) == "sedes is not a known key; did you mean 'seeds'?"
    assert refused(with_arm("few", kind="trian")).endswith("did you mean 'train'?")
    assert refused(with_arm("few", sett={})).startswith("arms.few.sett is not a known key")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("harm", ("harm", "")),
        ("harm.EHD_seen", ("harm", "EHD_seen")),
        ("over_refusal", ("over_refusal", "")),
        ("helpfulness.GENERAL", ("helpfulness", "GENERAL")),
        ("malformed", ("malformed", "")),
        ("training.seconds", ("training", "seconds")),
    ],
)
def test_figures_have_parts(name: str, parts: tuple[str, str]):
    assert split_figure(name) == parts


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "must begin with"),
        ("cost", "must begin with.*for example harm.IHD"),
        ("harm.", "must go on; try harm"),
        ("training", "must go on; try training.kept_fraction"),
        ("malformed.GENERAL", "one share over all answers; try malformed"),
    ],
)
def test_other_figures_are_refused(name: str, says: str):
    with pytest.raises(ValueError, match=says):
        split_figure(name)


def test_base_files_lie_beside_the_study_and_over_one_another(tmp_path: Path):
    folder = tmp_path / "studies"
    folder.mkdir()
    (tmp_path / "world.yaml").write_text("iterations: 3\nppo: {epochs: 1, gamma: 1.0}\n")
    (folder / "small.yaml").write_text("ppo: {epochs: 4}\n")
    written = tree(base={"train": ["../world.yaml", "small.yaml"], "fit": []})
    (folder / "study.yaml").write_text(yaml.safe_dump(written))
    config = load_study(folder / "study.yaml")
    assert read_base(config) == {
        "train": {"iterations": 3, "ppo": {"epochs": 4, "gamma": 1.0}},
        "fit": {},
    }
    (folder / "small.yaml").unlink()
    with pytest.raises(ConfigError, match=r"small\.yaml: cannot be read"):
        read_base(config)
