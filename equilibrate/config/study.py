"""One study as a frozen tree: arms x seeds of training runs, and the claims they are to test."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from equilibrate.config.base import Config, OutputFolder
from equilibrate.config.files import load_settings, merge_settings, nearest, read_yaml

Kind = Literal["train", "fit"]
"""train: PPO (`TrainConfig`); fit: offline training (`FitConfig`)."""

FIGURE_GROUPS = ("harm", "over_refusal", "helpfulness", "malformed", "training")


def _one_is_a_list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_one_is_a_list), Field(min_length=1)]


class ArmConfig(Config):
    """One setting that every seed is trained with."""

    kind: Kind
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings laid over `common` of the kind, which lies over its `base`."""
    start: str = ""
    """An arm that stands before it: each seed goes on from the policy that this arm ended with, in
    the built-in world. Left out, it starts as its settings say."""
    label: str = ""
    """Its name in plots and tables; empty takes the arm's own."""
    x: float | None = None
    """Position on a question's axis, for example the amount of data."""


class Claim(Config):
    """What one side is said to do better than the other, in a figure or as a Pareto front."""

    text: str
    figure: str = ""
    """The claim is about one figure of one arm against another arm."""
    against_figure: str = ""
    """Of `against`, where it is another one: an arm may so stand against itself."""
    front: tuple[str, str] | None = None
    """Or about the fronts of several arms: a harm and a value figure."""
    compare: Literal["area", "equal_harm"] = "area"
    """Of fronts: the area under them, which also grows by going further along the same line; or
    their height, the value where both reach the same harm."""
    of: Names
    against: Names
    expect: Literal["higher", "lower", "same"]
    """Where the gap, `of` minus `against`, is said to lie."""
    margin: float = Field(0.0, ge=0)
    """How far the gap must exceed 0, or for `same` how far from 0 it may lie; units of the figure
    (0.02 is two percentage points of a share)."""
    note: str = ""

    @property
    def figures(self) -> tuple[str, ...]:
        return self.front or tuple(filter(None, (self.figure, self.against_figure)))


class Question(Config):
    """What a group of arms is to answer, and how that is drawn."""

    id: str = Field(min_length=1)
    title: str
    text: str = ""
    x_label: str = ""
    log_x: bool = False
    lines: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Curves over x: label -> arms."""
    fronts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Pareto fronts: label -> arms."""
    figures: tuple[str, ...] = ()
    """Figures that are plotted over x and tabulated; those of the claims are tabulated anyway."""
    claims: tuple[Claim, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm that is named here, in order of first appearance."""
        return tuple(dict.fromkeys(arm for _, arm in self.named_arms()))

    @property
    def tabulated(self) -> tuple[str, ...]:
        claimed = (figure for claim in self.claims for figure in claim.figures)
        return tuple(dict.fromkeys((*self.figures, *claimed)))

    def named_arms(self) -> Iterator[tuple[str, str]]:
        """Key under the question, and the arm named there."""
        for key, groups in (("lines", self.lines), ("fronts", self.fronts)):
            yield from ((f"{key}.{label}", arm) for label, arms in groups.items() for arm in arms)
        for number, claim in enumerate(self.claims):
            for side, arms in (("of", claim.of), ("against", claim.against)):
                yield from ((f"claims.{number}.{side}", arm) for arm in arms)


class StudyConfig(Config):
    """A grid of runs and the questions it answers.

    Checks across keys stand here and not in the parts: here a message is the rule alone, without
    the whole part printed before it.
    """

    name: str = Field(min_length=1)
    output: OutputFolder
    """Folder of run folders and the page."""
    stages: OutputFolder = ""
    """Folder of base models and scorers, which studies may share; left out: one under `output`."""
    results: str = Field(min_length=1)
    """File of JSON lines, one per finished run; it is kept under version control, and studies may
    share it."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    base: dict[Kind, tuple[str, ...]] = Field(default_factory=dict)
    """YAML files under every arm of a kind, later over earlier; relative to the study's file."""
    common: dict[Kind, dict[str, Any]] = Field(default_factory=dict)
    """Settings laid over `base` for every arm of a kind."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    questions: tuple[Question, ...] = ()

    def label_of(self, arm: str) -> str:
        return self.arms[arm].label or arm

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        _require_distinct("seeds", self.seeds)
        _require_distinct("questions.id", [question.id for question in self.questions])
        _require_distinct("arms.label", [self.label_of(arm) for arm in self.arms])
        return self

    @model_validator(mode="after")
    def _arms_exist(self) -> Self:
        for question in self.questions:
            for key, arm in question.named_arms():
                if arm not in self.arms:
                    hint = nearest(arm, self.arms) or f"arms: {', '.join(self.arms)}"
                    raise ValueError(f"{question.id}.{key} ({arm!r}) must be an arm; {hint}")
        return self

    @model_validator(mode="after")
    def _starts_are_made_before(self) -> Self:
        before: list[str] = []
        for name, arm in self.arms.items():
            if arm.start and arm.start not in before:
                hint = nearest(arm.start, before) or f"these do: {', '.join(before) or 'none'}"
                raise ValueError(
                    f"arms.{name}.start ({arm.start!r}) must be an arm that stands before it and "
                    f"has no start itself; {hint}"
                )
            before += [] if arm.start else [name]
        return self

    @model_validator(mode="after")
    def _figures_parse(self) -> Self:
        for question in self.questions:
            for figure in question.figures:
                split_figure(figure, key=f"{question.id}.figures")
            for number, claim in enumerate(question.claims):
                _check_claim(claim, key=f"{question.id}.claims.{number}")
        return self

    @model_validator(mode="after")
    def _curves_have_positions(self) -> Self:
        for question in self.questions:
            for arm in (arm for arms in question.lines.values() for arm in arms):
                x = self.arms[arm].x
                if x is None or (question.log_x and x <= 0):
                    rule = "a number above 0 (log_x is on)" if question.log_x else "a number"
                    raise ValueError(
                        f"arms.{arm}.x ({x}) must be {rule}: it is on a curve of {question.id}; "
                        "give it, or take the arm out of lines"
                    )
        return self


def load_study(file: Path) -> StudyConfig:
    """The study in a YAML file, with the paths of `base` made relative to the working folder.

    Raises: ConfigError naming the file or key, the value and the rule.
    """
    study = load_settings(StudyConfig, [file])
    base = {
        kind: tuple(os.path.normpath(file.parent / path) for path in paths)
        for kind, paths in study.base.items()
    }
    return study.model_copy(update={"base": base})


def read_base(study: StudyConfig) -> dict[Kind, dict[str, Any]]:
    """The merged `base` files of each kind; a kind without any has no entry.

    Raises: ConfigError for a file that cannot be read.
    """
    trees: dict[Kind, dict[str, Any]] = {}
    for kind, files in study.base.items():
        tree = trees.setdefault(kind, {})
        for file in files:
            merge_settings(tree, read_yaml(Path(file)))
    return trees


def split_figure(name: str, *, key: str = "figure") -> tuple[str, str]:
    """Group and cell of a figure, for example `("harm", "EHD_seen")`; of `training.x` its key.

    The cell of `harm`, `over_refusal` (means over their cells) and `malformed` is "".
    Raises: ValueError naming `key`, the value and the nearest valid choice.
    """
    group, dot, part = name.partition(".")
    if group not in FIGURE_GROUPS:
        hint = nearest(group, FIGURE_GROUPS) or "for example harm.IHD"
        raise ValueError(f"{key} ({name!r}) must begin with {', '.join(FIGURE_GROUPS)}; {hint}")
    examples = {"helpfulness": "helpfulness.GENERAL", "training": "training.kept_fraction"}
    if not part and (dot or group in examples):
        raise ValueError(f"{key} ({name!r}) must go on; try {examples.get(group, group)}")
    if part and group == "malformed":
        raise ValueError(f"{key} ({name!r}) must be one share over all answers; try malformed")
    return group, part


def _check_claim(claim: Claim, *, key: str) -> None:
    if bool(claim.figure) == (claim.front is not None):
        raise ValueError(f"{key} must have one of figure and front; try figure: harm")
    groups = [split_figure(figure, key=key)[0] for figure in claim.figures]
    if claim.front is None and len(claim.of) + len(claim.against) > 2:
        raise ValueError(
            f"{key}.of and against ({', '.join((*claim.of, *claim.against))}) must be one arm "
            "each for a figure; to compare several arms give front"
        )
    if claim.against_figure and (claim.front or len(set(groups)) > 1):
        raise ValueError(
            f"{key}.against_figure ({claim.against_figure!r}) must have the unit of figure; try "
            f"{groups[0]} or {groups[0]}.CELL, and no front"
        )
    if claim.front and (groups[0] != "harm" or groups[1] not in ("helpfulness", "over_refusal")):
        raise ValueError(
            f"{key}.front ({', '.join(claim.front)}) must be a harm figure and one of "
            "helpfulness or over_refusal; try [harm, helpfulness.GENERAL]"
        )
    if claim.compare == "equal_harm" and not claim.front:
        raise ValueError(
            f"{key}.compare (equal_harm) needs a front; try front: [harm, helpfulness.GENERAL]"
        )
    if claim.expect == "same" and claim.margin == 0:
        raise ValueError(
            f"{key}.margin (0.0) must be above 0 where `same` is expected: no two runs are equal; "
            "try 0.05"
        )


def _require_distinct(key: str, values: Iterable[object]) -> None:
    seen: list[object] = []
    for value in values:
        if value in seen:
            raise ValueError(f"{key} ({value!r}) must be distinct; leave out or rename the second")
        seen.append(value)
