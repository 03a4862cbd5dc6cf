"""How people write the files of a run: a path, or several with what is said of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.identity import fixed_on_resume, input_paths, result_settings
from equilibrate.config.inputs import InputFile, as_written
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError
from equilibrate.types import Category

MODELS = {"policy": "p", "reward": "r", "cost": "c"}


def config(prompts: object, **data: object) -> TrainConfig:
    return parse_settings(TrainConfig, {"data": {**MODELS, "prompts": prompts, **data}})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("", ()),
        ("a.csv", (InputFile(file="a.csv"),)),
        (["a.csv", "b.csv"], (InputFile(file="a.csv"), InputFile(file="b.csv"))),
        (
            [{"file": "a.csv", "category": "EHD", "share": 2}, {"file": "b.csv", "share": 1}],
            (
                InputFile(file="a.csv", category=Category.EHD, share=2.0),
                InputFile(file="b.csv", share=1.0),
            ),
        ),
        ([{"xstest": "x.csv"}], (InputFile(file="x.csv", name="xstest"),)),
        (
            {"xstest": "x.csv", "mine": {"file": "m.csv", "category": "IHD"}},
            (
                InputFile(file="x.csv", name="xstest"),
                InputFile(file="m.csv", name="mine", category=Category.IHD),
            ),
        ),
        ({"file": "a.csv", "category": "MHD"}, (InputFile(file="a.csv", category="MHD"),)),
    ],
)
def test_every_form_is_read_and_written_so_that_it_reads_as_the_same(
    written: object, read: tuple[InputFile, ...]
) -> None:
    if written == "":
        assert config("a.csv", evaluation=written).data.evaluation == read
        return
    found = config(written).data.prompts
    assert found == read
    assert config(as_written(found)).data.prompts == read


def test_a_path_alone_is_written_as_it_was_given() -> None:
    assert config("a.csv").model_dump(mode="json")["data"]["prompts"] == "a.csv"
    assert config("a.csv").model_dump(mode="json")["data"]["evaluation"] == ""


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ([{"file": "a", "share": 1}, "b"], "b has no share"),
        (["a", "a"], "a stands there twice; name"),
        (["a", "./a"], r"\./a stands there twice, also as a; name"),
        ([{"file": "a", "share": 0}], "share"),
        ([{"file": "a", "share": 1e308}, {"file": "b", "share": 1e308}], "share"),
        ([{"file": "a", "share": 5e-324}, {"file": "b", "share": 1}], "share"),
        ([{"file": "a", "category": "WORSE"}], "category"),
        ([{"file": "a", "clas": "EHD"}], "clas"),
        ([{"file": ""}], "file"),
        ([{"file": "a", "weight": 2}], r"weight is not a known key; valid keys: category, file"),
        ([3], r"prompts\.0 \(3\) must hold keys: category, file, name, share"),
        ([{"category": "EHD"}], r"prompts\.0\.file .*required"),
        ({"category": "EHD", "share": 1}, r"prompts\.0\.file .*required"),
        (7, "prompts"),
    ],
)
def test_what_is_no_list_of_files_is_refused_by_name(written: object, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        config(written)


def test_a_file_and_a_link_to_it_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.csv").symlink_to("a.csv")
    with pytest.raises(ConfigError, match=r"b\.csv stands there twice, also as .*a\.csv"):
        config([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])


def test_files_that_are_read_whole_have_no_share() -> None:
    shared = [{"file": "a", "share": 1}]
    with pytest.raises(ConfigError, match=r"data\.evaluation is read whole"):
        config("p", evaluation=shared)
    with pytest.raises(ConfigError, match=r"data\.train is read whole.*fdc\.amounts"):
        parse_settings(FitConfig, {"data": {"policy": "p", "train": shared}})


def test_what_is_said_of_a_file_counts_and_its_place_does_not() -> None:
    def of(prompts: object) -> object:
        return result_settings(config(prompts))

    one = [{"file": "a", "category": "EHD"}, "b"]
    assert of(one) == of([{"file": "elsewhere/a", "category": "EHD"}, "elsewhere/b"])
    assert of(one) != of([{"file": "a", "category": "IHD"}, "b"])
    assert of(one) != of(["a", "b"])
    assert fixed_on_resume(config(one))["data.prompts"] == [
        {"file": "given", "category": "EHD"},
        {"file": "given"},
    ]


def test_the_share_of_a_lone_file_says_nothing() -> None:
    assert config([{"file": "a", "share": 3}]) == config("a")


def test_every_file_is_an_input() -> None:
    found = input_paths(config(["a", {"xstest": "b"}]))
    assert found["data.prompts[0]"] == Path("a")
    assert found["data.prompts[1]"] == Path("b")
    assert input_paths(config("a"))["data.prompts"] == Path("a")
