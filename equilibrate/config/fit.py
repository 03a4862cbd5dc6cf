"""One offline training as a frozen tree of settings: what a policy learns from labelled answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from equilibrate.config.base import (
    Config,
    InputsConfig,
    MaskConfig,
    OutputFolder,
    RunConfig,
    off_is_none,
    require_given,
    require_no_inputs,
    require_no_shares,
    require_token_scores,
    type_is,
)
from equilibrate.config.identity import InputPath
from equilibrate.config.inputs import InputFiles
from equilibrate.config.sources import reads_text
from equilibrate.config.training import TrainingGroup
from equilibrate.types import Category, ScorerKind

Trained = Literal["policy", "reward", "cost", "scorer"]
"""A policy, or what scores; `scorer` is reward and cost in one."""


class ObjectiveConfig(Config):
    """What every objective says of itself."""

    trains: ClassVar[Trained] = "policy"
    """Kind of model that comes out."""


class ScorerObjectiveConfig(ObjectiveConfig):
    """A model with one score per token, learned from pairs."""

    type: Literal["reward", "cost", "scorer"]
    regularization: float = Field(0.01, ge=0)
    """mu of the Safe-RLHF loss, keeps scores near 0."""
    token_wise: bool = True
    """Compare at every token from the first difference on, not only at the end."""
    held_out_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the prompts that calibrate the model instead of teaching it."""

    @property
    def kinds(self) -> tuple[ScorerKind, ...]:
        """Of each head, in their order."""
        return ("reward", "cost") if self.type == "scorer" else (self.type,)


class RewardConfig(ScorerObjectiveConfig):
    """Which of two answers is more helpful; needs `better_response_id`, or chosen and rejected."""

    type: Literal["reward"] = "reward"
    trains: ClassVar[Trained] = "reward"


class CostConfig(ScorerObjectiveConfig):
    """Which of two answers is more harmful, and on which side of 0 each lies; needs
    `safer_response_id` and both safety labels."""

    type: Literal["cost"] = "cost"
    trains: ClassVar[Trained] = "cost"


class ScorerConfig(ScorerObjectiveConfig):
    """Both by one model with two heads, in half the memory and time of two models; needs the labels
    of both."""

    type: Literal["scorer"] = "scorer"
    trains: ClassVar[Trained] = "scorer"


class SftConfig(ObjectiveConfig):
    """Cross entropy of the answers; needs `prompt` and `response`."""

    type: Literal["sft"] = "sft"


class DpoConfig(ObjectiveConfig):
    """Direct preference optimisation, and with `ama` its adaptive form ADPO."""

    type: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    nll_coef: float = Field(1.0, ge=0)
    """Weight of the chosen answer's cross entropy, which keeps answers well-formed."""
    nll_on: Literal["kept", "all"] = "kept"
    """Which tokens of the chosen answer it teaches: those that the mask keeps, or all, masked ones
    too. Without `ama` both are the same."""


class ArsConfig(ObjectiveConfig):
    """Rejection sampling: the best of several own answers, and with `ama` its adaptive form ARS."""

    type: Literal["ars"] = "ars"
    copies: int = Field(4, gt=1)
    """Answers sampled to each prompt; `reward` and `cost` choose among them."""
    negative_coef: float = Field(0.0, ge=0)
    """Weight of unlearning the worst answer; 0 leaves it out."""


class BfpoConfig(ObjectiveConfig):
    """Bi-factorial preference optimisation: one label for safety and helpfulness of a pair."""

    type: Literal["bfpo"] = "bfpo"
    tau: float = Field(0.1, gt=0)
    """Strength of the pull to the reference: the lead to learn is the label over tau, nats."""
    safety_weight: float = Field(3.0, gt=1)
    shift: float = 0.5
    """Moves all labels towards the less helpful answer."""


class DertaConfig(ObjectiveConfig):
    """Decoupled refusal training: to turn back at any point of a harmful answer."""

    type: Literal["derta"] = "derta"
    refusal: str = Field("Sorry", min_length=1)
    """Its first token is what every token of a harmful answer is taught to be."""


Objective = Annotated[
    SftConfig
    | RewardConfig
    | CostConfig
    | ScorerConfig
    | DpoConfig
    | ArsConfig
    | BfpoConfig
    | DertaConfig,
    Field(discriminator="type"),
    type_is("dpo"),
]


class AnswerMaskConfig(MaskConfig):
    """The mask of labelled answers: the side is the label.

    Whose scores, and of which classes, are what pushed hardest in docs/study.md (Q6).
    """

    source: Literal["reward", "cost", "both", "critics"] = "cost"
    ungated: tuple[Category, ...] = (Category.GENERAL, Category.BORDERLINE)
    mode: Literal["gradient", "forward"] = "gradient"
    """What a masked token loses: its gradient alone, or its place in the loss too."""
    when_empty: Literal["full", "skip"] = "full"
    """Where the mask would drop every token of an answer: train it unmasked, or skip its pair."""
    dead_band: float = Field(0.0, ge=0)
    """Drop a token only where its score is further than this on the other side; units of the
    score."""


class FitDataConfig(InputsConfig):
    """Inputs; every empty path is made by the built-in world."""

    policy: InputPath = ""
    """Model folder to start from; a scorer gets its weights and a head of its own, or goes on from
    a scorer of its kind."""
    reward: InputPath = ""
    """Folder of a causal model with one score or both, its sidecar and the policy's tokenizer; for
    ars also one of another tokenizer and what reads text, as `train` takes them."""
    cost: InputPath = ""
    """Likewise."""
    train: InputFiles = ()
    """Answers or pairs, in any format that `python -m equilibrate data FILE` recognises; `category`
    where amounts are asked for. ars: prompts."""
    evaluation: InputFiles = ()
    """Prompts; without it the policy is not measured."""
    prefer: Literal["helpful", "safer", "safe_first"] = "safe_first"
    """Which answer of a pair sft, dpo and derta learn: the better, the safer, or the safe one where
    the labels differ and else the better; then a pair of two unsafe answers is left out."""

    @model_validator(mode="after")
    def _files_are_read_whole(self) -> Self:
        require_no_shares(self, "train", "evaluation")
        return self

    @property
    def is_built_in(self) -> bool:
        return not self.policy


class AmountsConfig(Config):
    """How many examples of each class are learned from (Equilibrate RLHF, fine-grained data)."""

    amounts: dict[Category, int] = Field(default_factory=dict)
    """Examples of each class, drawn without replacement; empty takes every example there is."""
    when_short: Literal["error", "oversample"] = "error"
    """A class with too few examples: refuse at the door, or go through it again."""
    mislabelled_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the built-in world's safety examples whose prompt is harmless in truth."""
    remedy: dict[Literal["plain", "noted"], int] = Field(default_factory=dict)
    """In place of `amounts`: so many safe and helpful answers that the built-in world writes with
    its notes at hand, for half of the objects that no fact describes and for others; to the prompt
    alone, or with the note before it (`sandbox.notes`)."""

    @model_validator(mode="after")
    def _amounts_are_counts(self) -> Self:
        if any(amount < 0 for amount in self.amounts.values()):
            raise ValueError("amounts must be >= 0; try {GENERAL: 1200, EHD: 1000}")
        if any(amount < 1 for amount in self.remedy.values()):
            raise ValueError(f"remedy ({self.remedy}) must be > 0; try {{plain: 1200}}")
        if self.amounts and self.remedy:
            raise ValueError("amounts and remedy are two data sets; leave one of them out")
        if self.amounts and not any(self.amounts.values()):
            raise ValueError("one amount at least must be above 0; try {GENERAL: 1200, EHD: 1000}")
        return self


USUAL_LR: Mapping[str, float] = {
    "sft": 1e-5,
    "dpo": 5e-7,
    "ars": 2e-6,
    "bfpo": 5e-7,
    "derta": 2e-5,
    "reward": 2e-5,
    "cost": 2e-5,
    "scorer": 2e-5,
}
"""Peak learning rates for 1 to 8 billion parameters, all of them trained: those that Safe RLHF
(reward, cost; and so scorer), OpenRLHF (dpo, ars) and the authors of bfpo and derta take, and for
sft one between those of common recipes (5e-6 to 2e-5). Smaller models bear more."""


class FitConfig(RunConfig):
    """Everything one offline training depends on."""

    output: OutputFolder = "runs/fit"
    data: FitDataConfig = FitDataConfig()
    fdc: AmountsConfig = AmountsConfig()
    objective: Objective = DpoConfig()
    ama: Annotated[AnswerMaskConfig | None, BeforeValidator(off_is_none)] = None
    multiplier: float = Field(1.0, ge=0)
    """lambda of (R - lambda C)/(1 + lambda), which `ama.source: both` masks and ars chooses by."""
    trainer: TrainingGroup = TrainingGroup()
    epochs: int = Field(1, gt=0)
    steps: int = Field(0, ge=0)
    """Optimiser steps; 0 takes as many as `epochs` passes over the examples have."""
    batch_size: int = Field(32, gt=0)
    """Examples of one optimiser step, over all workers; a pair is one example."""
    lr: float = Field(USUAL_LR["dpo"], gt=0)
    """Peak: warm-up, then a cosine to 0. Left out, it is that of the objective in `USUAL_LR`."""
    max_length: int = Field(2048, gt=1)
    """Longest prompt and answer together, in tokens; longer ones are cut."""

    @property
    def trains(self) -> Trained:
        """Kind of model that comes out."""
        return self.objective.trains

    @property
    def held_out_fraction(self) -> float:
        """Share of the prompts that are kept from training to measure by."""
        objective = self.objective
        return objective.held_out_fraction if isinstance(objective, ScorerObjectiveConfig) else 0.0

    @property
    def needs_scorers(self) -> bool:
        """Whether anything asks for reward and cost of a token."""
        return self.ama is not None or self.objective.type == "ars"

    @model_validator(mode="before")
    @classmethod
    def _lr_is_that_of_the_objective(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or "lr" in tree:
            return tree
        objective = tree.get("objective")
        if isinstance(objective, dict):
            kind = objective.get("type")
        else:
            kind = getattr(objective, "type", None)
        return {**tree, "lr": USUAL_LR.get(str(kind), USUAL_LR["dpo"])}

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        workers = self.trainer.num_workers
        if self.batch_size % workers:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of trainer.num_workers "
                f"({workers}); try {max(1, self.batch_size // workers) * workers}"
            )
        return self

    @model_validator(mode="after")
    def _masks_have_what_they_need(self) -> Self:
        if self.ama is None:
            return self
        objective = self.objective.type
        require_token_scores(self.data, self.ama.source)
        if self.trains != "policy":
            raise ValueError(
                f"ama masks the tokens of a policy, and objective.type ({objective}) trains a "
                "scorer; try ama=off"
            )
        if objective in ("bfpo", "derta"):
            raise ValueError(
                f"ama needs answers that are either good or bad, and objective.type "
                f"({objective}) has others; try ama=off, or objective.type=dpo"
            )
        if objective == "dpo" and self.ama.normalizer == "all":
            raise ValueError(
                "ama.normalizer (all) divides by tokens, and the loss of objective.type (dpo) is a "
                "mean over pairs; leave it out"
            )
        if objective != "dpo" and self.ama.mode == "forward":
            raise ValueError(
                f"ama.mode (forward) is about log-ratios to the reference, and objective.type "
                f"({objective}) has none; leave it out, or try objective.type=dpo"
            )
        if self.ama.source == "critics":
            raise ValueError(
                "ama.source (critics) needs critics, and offline training has none; "
                "try ama.source=both"
            )
        return self

    @model_validator(mode="after")
    def _remedy_is_learned_alone(self) -> Self:
        fdc = self.fdc
        if fdc.remedy and self.objective.type != "sft":
            raise ValueError(
                f"fdc.remedy writes single answers, and objective.type ({self.objective.type}) "
                "does not learn from them; try objective.type=sft"
            )
        if fdc.remedy and fdc.mislabelled_fraction:
            raise ValueError(
                f"fdc.mislabelled_fraction ({fdc.mislabelled_fraction}) is of fdc.amounts, and "
                "fdc.remedy is given; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _paths_come_together(self) -> Self:
        data = self.data
        if data.is_built_in:
            require_no_inputs(data)
            if not (self.fdc.amounts or self.fdc.remedy) and self.trains == "policy":
                raise ValueError(
                    "fdc.amounts ({}) must say how many examples the built-in world is to write; "
                    "try {GENERAL: 1200, BORDERLINE: 300, EHD: 1000, IHD: 300, MHD: 100}"
                )
            return self
        for key in ("mislabelled_fraction", "remedy"):
            if value := getattr(self.fdc, key):
                raise ValueError(
                    f"fdc.{key} ({value}) is for the built-in world, which knows the truth; "
                    "leave it out with data.policy"
                )
        if data.evaluation and self.trains != "policy":
            raise ValueError(
                f"data.evaluation measures a policy, and objective.type ({self.trains}) trains a "
                "scorer, which is measured on held-out pairs; leave it out"
            )
        for kind in ("reward", "cost"):
            if reads_text(source := getattr(data, kind)) and self.objective.type != "ars":
                raise ValueError(
                    f"data.{kind} ({source}) scores answers that are sampled, and objective.type "
                    f"({self.objective.type}) learns from given ones; leave it out"
                )
        require_given(data, "train", *(["reward", "cost"] if self.needs_scorers else []))
        return self
