"""A whole journey as one small tree of settings: from a chat model and labelled pairs to a model
that was aligned and measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from equilibrate.config.base import Config, OutputFolder, off_is_none, require_no_shares
from equilibrate.config.files import merge_settings, nearest, parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.inputs import InputFile, InputFiles, as_written
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError

StepName = Literal["sft", "reward", "cost", "align"]


class StepsConfig(Config):
    """Settings of single steps, as `train` (align by ppo) and `fit` (all others) take them."""

    sft: dict[str, Any] = Field(default_factory=dict)
    reward: dict[str, Any] = Field(default_factory=dict)
    cost: dict[str, Any] = Field(default_factory=dict)
    align: dict[str, Any] = Field(default_factory=dict)


class AlignConfig(Config):
    """What goes in, and what differs from the defaults of the steps."""

    output: OutputFolder = "runs/align"
    policy: str = ""
    """Folder of the chat model to be aligned."""
    demonstrations: InputFiles = ()
    """Prompts with answers that it learns first (`fit objective.type=sft`); empty leaves this
    step out."""
    pairs: InputFiles = ()
    """Pairs of answers, labelled for help and harm as PKU-SafeRLHF is; the reward and the cost
    model learn from it, and so does the policy where `by` is an offline objective."""
    reward: str = ""
    """Folder of a reward model that is there already: its step is left out."""
    cost: str = ""
    """Likewise, of a cost model."""
    prompts: InputFiles = ()
    """Prompts that the policy answers in training, each with its class."""
    evaluation: InputFiles = ()
    """Prompts that base and aligned model are measured on."""
    by: Literal["ppo", "dpo", "bfpo", "derta", "ars"] = "ppo"
    """What aligns: PPO-Lagrangian, or an offline objective."""
    max_unsafe_share: float = Field(0.05, gt=0, lt=0.5)
    """Share of unsafe answers that the budget of PPO is proposed for, from the calibration of the
    cost model; `steps.align.constraint.budget` overrides the proposal, and with
    `steps.align.constraint.max_unsafe_share` the share itself is bounded."""
    licences: dict[str, str] = Field(default_factory=dict)
    """Licences of what goes in, by its key above, for example {pairs: cc-by-nc-4.0}: the model card
    states them."""
    common: dict[str, Any] = Field(default_factory=dict)
    """Settings of every step, for example {device: cuda, seed: 1}."""
    steps: StepsConfig = StepsConfig()

    @model_validator(mode="after")
    def _has_what_its_steps_need(self) -> Self:
        needs = {"policy": True, "prompts": self.by in ("ppo", "ars")}
        needs["pairs"] = not (self.reward and self.cost) or self.by in ("dpo", "bfpo", "derta")
        for name, needed in needs.items():
            if needed and not getattr(self, name):
                raise ValueError(
                    f"{name} ('') must name a folder or file; try {name}: {_TRY[name]}"
                )
        return self

    @model_validator(mode="after")
    def _files_have_shares_where_they_are_mixed(self) -> Self:
        whole = ("demonstrations", "pairs", "evaluation")
        require_no_shares(self, *whole, *(() if self.by == "ppo" else ("prompts",)), prefix="")
        return self

    @field_validator("licences")
    @classmethod
    def _are_of_inputs(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(value.keys() - set(_INPUTS)):
            raise ValueError(
                f"{unknown[0]!r} must be an input's key ({', '.join(_INPUTS)}); try "
                "{pairs: cc-by-4.0}"
            )
        return value

    @model_validator(mode="after")
    def _common_leaves_alone_what_steps_differ_in(self) -> Self:
        data = self.common.get("data", {})
        paths = [f"data.{key}" for key in data] if isinstance(data, dict) else []
        for key in (*self.common, *paths):
            if key in _OF_ONE_STEP:
                raise ValueError(
                    f"common.{key} differs from step to step; set it under steps, or at the top"
                )
        return self


_INPUTS = ("policy", "demonstrations", "pairs", "reward", "cost", "prompts", "evaluation")
_OF_ONE_STEP = ("output", "objective", "constraint", "data.policy", "data.reward", "data.cost",
                "data.train", "data.prompts", "data.evaluation")  # fmt: skip
_TRY = {"policy": "models/my-chat", "prompts": "data/prompts.jsonl", "pairs": "data/pairs.jsonl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a journey: the command that carries it out, and where its model will lie."""

    name: StepName
    config: TrainConfig | FitConfig
    model: Path


@dataclass(slots=True)
class Journey:
    """The steps of `config` in their order, each with the results of those before."""

    config: AlignConfig
    RESULTS: ClassVar[Mapping[StepName, str]] = {
        "sft": "aligned", "reward": "reward", "cost": "cost", "align": "aligned",
    }  # fmt: skip

    def folder(self, name: StepName) -> Path:
        return Path(self.config.output, name)

    def model(self, name: StepName) -> Path:
        return self.folder(name) / self.RESULTS[name]

    @property
    def policy(self) -> str:
        """What reward, cost and alignment start from."""
        return str(self.model("sft")) if self.config.demonstrations else self.config.policy

    def scorer(self, kind: Literal["reward", "cost"]) -> str:
        return getattr(self.config, kind) or str(self.model(kind))

    @property
    def needs_scorers(self) -> bool:
        """DPO and its kin learn from labels alone, unless a mask asks for scores."""
        ama = off_is_none(self.config.steps.align.get("ama"))
        return self.config.by in ("ppo", "ars") or ama is not None

    @property
    def needs_budget(self) -> bool:
        """Whether the cost model is to say where the budget lies."""
        constraint = self.config.steps.align.get("constraint", {})
        if self.config.by != "ppo" or not isinstance(constraint, dict):
            return False
        return constraint.get("max_unsafe_share") is None and "budget" not in constraint

    def steps(self, budget: float | None = None) -> Iterator[Step]:
        """Raises: ConfigError naming the step and the key, for what a step's settings break.

        Args: budget: of the mean cost; None until the cost model can say.
        """
        config = self.config
        if config.demonstrations:
            yield self._fit("sft", "sft", config.demonstrations, policy=config.policy)
        for kind in ("reward", "cost") if self.needs_scorers else ():
            if not getattr(config, kind):
                yield self._fit(kind, kind, config.pairs, policy=self.policy)
        yield self._alignment(budget)

    def _alignment(self, budget: float | None) -> Step:
        config = self.config
        data: dict[str, Any] = {"policy": self.policy, "evaluation": as_written(config.evaluation)}
        if self.needs_scorers:
            data |= {kind: self.scorer(kind) for kind in ("reward", "cost")}
        if config.by != "ppo":
            train = config.prompts if config.by == "ars" else config.pairs
            return self._fit("align", config.by, train, **data)
        tree: dict[str, Any] = {"data": data | {"prompts": as_written(config.prompts)}}
        if budget is not None:
            tree["constraint"] = {"budget": budget}
        return self._step("align", TrainConfig, tree)

    def _fit(
        self, name: StepName, objective: str, train: tuple[InputFile, ...], **data: Any
    ) -> Step:
        tree = {"objective": {"type": objective}, "data": data | {"train": as_written(train)}}
        return self._step(name, FitConfig, tree)

    def _step(
        self, name: StepName, kind: type[TrainConfig | FitConfig], given: dict[str, Any]
    ) -> Step:
        tree: dict[str, Any] = {}
        own = getattr(self.config.steps, name)
        for part in (_known_to(kind, self.config.common), given, own):
            merge_settings(tree, deepcopy(part))
        tree["output"] = str(self.folder(name))
        if licences := self._licences(tree["data"]):
            tree["data"]["licences"] = licences | tree["data"].get("licences", {})
        try:
            config = parse_settings(kind, tree)
        except ConfigError as error:
            raise ConfigError(f"steps.{name}: {error}") from None
        return Step(name=name, config=config, model=self.model(name))

    def _licences(self, data: Mapping[str, Any]) -> dict[str, str]:
        """Those of the journey's inputs, by the keys of a step that reads them."""
        written = self.config.model_dump(mode="json")
        return {
            key: licence
            for key, given in data.items()
            for name, licence in self.config.licences.items()
            if given and given == written[name]
        }


def _known_to(kind: type[Config], common: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings for every step that this kind of step has.

    Raises: ConfigError for one that no step has.
    """
    known = TrainConfig.model_fields | FitConfig.model_fields
    for key in common.keys() - known.keys():
        hint = nearest(key, known) or "try common.seed"
        raise ConfigError(f"common.{key} is a setting of no step; {hint}")
    return {key: value for key, value in common.items() if key in kind.model_fields}
