"""One run of PPO, as one frozen tree of settings, checked once at the door.

`equilibrate.config.files` reads YAML and overrides into it. Below the door functions take the
numbers they need, not this tree.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from equilibrate.config.base import (
    Config,
    InputsConfig,
    MaskConfig,
    OutputFolder,
    RunConfig,
    SamplingConfig,
    off_is_none,
    require_given,
    require_no_inputs,
    require_no_shares,
    require_token_scores,
    type_is,
)
from equilibrate.config.constraint import Constraint, PidMultiplier
from equilibrate.config.identity import InputPath, Mark
from equilibrate.config.inputs import InputFile, InputFiles, MoreRewards
from equilibrate.config.sources import reads_text
from equilibrate.config.training import TrainingGroup
from equilibrate.types import Category, ScorerKind


class RolloutConfig(SamplingConfig):
    prompts_per_iteration: int = Field(64, gt=0)
    copies: int = Field(1, gt=0)
    """Responses sampled per prompt."""
    max_policy_lag: int = Field(0, ge=0)
    """Iterations that sampling may run ahead of learning; 0 learns from the newest policy only."""


class LearnerConfig(TrainingGroup):
    """The policy and its critics, all of them in one way."""

    policy_lr: float = Field(1e-6, gt=0)
    """For 1 to 8 billion parameters: Safe RLHF took 1e-5, OpenRLHF takes 5e-7. Smaller models bear
    more."""
    critic_lr: float = Field(5e-6, gt=0)
    """Safe RLHF took 5e-6, OpenRLHF takes 9e-6."""
    two_headed_critic: bool = False
    """One critic with a head for rewards and one for costs, in place of two. It starts as the
    scorer where data.reward and data.cost are one folder, else as the policy with fresh heads."""
    lr_schedule: Literal["constant", "linear", "cosine", "cooldown"] = "constant"
    """How both learning rates fall to zero over the run; cooldown falls in its last 30 % only."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Gradients far below it move little. Adam moves all weights alike, also by the nearly empty
    gradients of words that no prompt or answer holds: of those the policy then forgets what it
    knew. 1e-5 suits a million weights; each gradient of a billion is smaller than that."""
    average_decay: float = Field(0.0, ge=0, lt=1)
    """Decay per iteration of an average of the policy's weights, which is then what is evaluated
    and exported, the last weights beside it: 0.9 looks back about 10 iterations; 0 keeps none."""
    ptx_coef: float = Field(0.0, ge=0)
    """Weight of the pretraining loss on `data.ptx`; 0 leaves it out."""


class StopKL(Config):
    """What every kind of weight of the KL has."""

    stop_at: Annotated[float | None, Mark.MAY_CHANGE] = Field(None, gt=0)
    """Mean KL to the reference, nats per token, above which an iteration is the last one: the run
    then ends as it would at `iterations`. Per token, as `target` and the metric `kl` are: times the
    mean response_length it is the KL of an answer. Empty: never."""


class FixedKL(StopKL):
    type: Literal["fixed"] = "fixed"
    coef: float = Field(0.02, ge=0)


class AdaptiveKL(StopKL):
    type: Literal["adaptive"] = "adaptive"
    coef: float = Field(0.02, gt=0)
    target: float = Field(0.05, gt=0)
    """Wanted mean KL to the reference, nats per token."""


AdvantageName = Literal["gae", "rloo", "grpo", "reinforce_plus_plus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageNeeds:
    """What an advantage estimator needs of a run."""

    critics: bool = False
    copies: bool = False
    """Several responses to one prompt, which it compares as wholes: gamma must be 1."""


ADVANTAGES: Mapping[AdvantageName, AdvantageNeeds] = {
    "gae": AdvantageNeeds(critics=True),
    "rloo": AdvantageNeeds(copies=True),
    "grpo": AdvantageNeeds(copies=True),
    "reinforce_plus_plus": AdvantageNeeds(),
}
"""The functions are in `equilibrate.ppo.estimators`."""


Truncated = Literal["as_is", "mask"] | Annotated[float, Field(gt=0)]


KLWeight = Annotated[FixedKL | AdaptiveKL, Field(discriminator="type"), type_is("fixed")]


class PPOConfig(Config):
    minibatch_size: int = Field(32, gt=0)
    epochs: int = Field(1, gt=0)
    clip_range: float = Field(0.2, gt=0, lt=1)
    value_clip_range: float = Field(5.0, gt=0)
    mean_over: Literal["tokens", "sequences"] = "tokens"
    """Policy and value losses are means over the tokens of a minibatch, or over the tokens of each
    answer and then over answers, as in Safe RLHF: a token of a short answer then weighs more."""
    truncated: Truncated = "as_is"
    """Answers cut at rollout.max_new_tokens. as_is: scored at the cut, which is their end; mask:
    left out of all losses and baselines, though lambda still moves on their cost; a number: so many
    reward units below their score."""
    gamma: float = Field(1.0, gt=0, le=1)
    advantage: AdvantageName = "gae"
    """gae trains critics. The others have none, and no use for gae_lambda, value_clip_range and
    learner.critic_lr: rloo and grpo compare the responses to one prompt, reinforce_plus_plus those
    of the batch."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    kl: KLWeight = FixedKL()
    importance: Literal["stale", "always"] = "stale"
    """Tokens with a truncated importance weight: those of an older policy, or all, against the
    rounding of a bfloat16 generator."""

    @property
    def has_critics(self) -> bool:
        return ADVANTAGES[self.advantage].critics

    def takes_one_step(self, num_rollouts: int) -> bool:
        """Whether an update on so many rollouts is a single optimizer step."""
        return self.epochs == 1 and self.minibatch_size >= num_rollouts


class AmaConfig(MaskConfig):
    """The mask of PPO, whose sides are signs of advantages; labelled answers have their label."""

    side: Literal["token", "sequence"] = "token"
    """Sign of each token's advantage, or of the whole response's score."""


class FdcConfig(Config):
    """How prompts of each class are mixed."""

    mixture: dict[Category, float] = Field(
        {
            Category.GENERAL: 0.30,
            Category.BORDERLINE: 0.25,
            Category.EHD: 0.25,
            Category.IHD: 0.12,
            Category.MHD: 0.08,
        }
    )
    """Share, ratio or target count of each class; only the proportions matter."""
    schedule: Literal["fixed", "saturation"] = "fixed"
    when_short: Literal["error", "oversample"] = "oversample"
    """A class with too few prompts for the run: refuse at the door, or go through it again."""

    @model_validator(mode="after")
    def _shares_are_positive(self) -> Self:
        if (
            not self.mixture
            or any(share < 0 for share in self.mixture.values())
            or not any(self.mixture.values())
        ):
            raise ValueError(
                "needs shares >= 0 with at least one above 0; try {GENERAL: 0.5, EHD: 0.5}"
            )
        return self


class DataConfig(InputsConfig):
    """Inputs; every empty path is made by the built-in world."""

    policy: InputPath = ""
    """Model folder to align."""
    reward: InputPath = ""
    """Folder of a causal model with one score or both, its sidecar and its tokenizer, the policy's
    or another; or what reads text: a function (`FILE.py:name`, `package.module:name`) or an
    endpoint (`http://...`)."""
    cost: InputPath = ""
    """Likewise."""
    more_rewards: MoreRewards = ()
    """Rewards beside `reward`, for example {length.py:brief: 0.1, models/polite: 0.5}: an answer
    then has the reward's score plus each of these scores times its weight."""
    prompts: InputFiles = ()
    """In any format that `python -m equilibrate data FILE` recognises; `category` names classes."""
    evaluation: InputFiles = ()
    ptx: InputPath = ""

    @field_validator("prompts")
    @classmethod
    def _a_share_is_among_several(cls, files: tuple[InputFile, ...]) -> tuple[InputFile, ...]:
        return (
            files if len(files) > 1 else tuple(f.model_copy(update={"share": None}) for f in files)
        )

    @model_validator(mode="after")
    def _more_rewards_stand_beside_one(self) -> Self:
        sources = [self.reward, *(term.source for term in self.more_rewards)]
        if self.more_rewards and not self.reward:
            raise ValueError(
                f"more_rewards ({sources[1]}) are added to reward, which is not given; give it"
            )
        places = [one if reads_text(one) else os.path.normpath(one) for one in sources]
        for source, place in zip(sources, places, strict=True):
            if places.count(place) > 1:
                raise ValueError(
                    f"more_rewards: {source} stands there twice, or as reward too; name it once"
                )
        return self

    @model_validator(mode="after")
    def _evaluation_is_read_whole(self) -> Self:
        require_no_shares(self, "evaluation")
        return self

    @property
    def is_built_in(self) -> bool:
        return not self.policy


class TrainConfig(RunConfig):
    """Everything one run of PPO depends on."""

    output: OutputFolder = "runs/train"
    iterations: Annotated[int, Mark.MAY_CHANGE] = Field(200, gt=0)
    checkpoint_every: Annotated[int, Mark.CARRIES_OUT] = Field(50, gt=0)
    keep_checkpoints: Annotated[int, Mark.CARRIES_OUT] = Field(2, gt=0)
    evaluate_every: Annotated[int, Mark.MAY_CHANGE] = Field(25, ge=0)
    """Iterations between points of the Pareto plot; 0 evaluates only base and aligned."""
    parity_tolerance: Annotated[float | None, Mark.CARRIES_OUT] = Field(None, gt=0)
    """Allowed difference of generator and learner log-probs, nats: of every token in float32, of
    the mean over tokens in bfloat16. By default 1e-4 and 0.1."""
    wandb_project: Annotated[str, Mark.CARRIES_OUT] = ""
    data: DataConfig = DataConfig()
    fdc: FdcConfig = FdcConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    ppo: PPOConfig = PPOConfig()
    constraint: Constraint = PidMultiplier()
    ama: Annotated[AmaConfig | None, BeforeValidator(off_is_none)] = None

    @property
    def rollouts_per_iteration(self) -> int:
        return self.rollout.prompts_per_iteration * self.rollout.copies

    @property
    def critics(self) -> tuple[ScorerKind, ...]:
        """What the values are of that are learned beside the policy."""
        if not self.ppo.has_critics:
            return ()
        is_read = self.ama is not None and self.ama.source == "critics"
        return ("reward", "cost") if self.constraint is not None or is_read else ("reward",)

    @property
    def critic_models(self) -> tuple[tuple[ScorerKind, ...], ...]:
        """The heads of each critic."""
        if self.learner.two_headed_critic:
            return (self.critics,)
        return tuple((kind,) for kind in self.critics)

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        rollouts, minibatch = self.rollouts_per_iteration, self.ppo.minibatch_size
        if rollouts % minibatch:
            raise ValueError(
                f"rollout.prompts_per_iteration x rollout.copies ({rollouts}) must be a multiple "
                f"of ppo.minibatch_size ({minibatch}); try ppo.minibatch_size="
                f"{_nearest_divisor(rollouts, minibatch)}"
            )
        workers = self.learner.num_workers
        if minibatch % workers:
            raise ValueError(
                f"ppo.minibatch_size ({minibatch}) must be a multiple of learner.num_workers "
                f"({workers}); try learner.num_workers={_nearest_divisor(minibatch, workers)}"
            )
        return self

    @model_validator(mode="after")
    def _advantages_have_what_they_need(self) -> Self:
        advantage, copies = self.ppo.advantage, self.rollout.copies
        compares_copies = ADVANTAGES[advantage].copies
        if compares_copies and copies < 2:
            raise ValueError(
                f"ppo.advantage ({advantage}) compares the responses to one prompt, so "
                f"rollout.copies ({copies}) must be at least 2; try 4"
            )
        if compares_copies and self.ppo.gamma != 1:
            raise ValueError(
                f"ppo.gamma ({self.ppo.gamma}) must be 1 with ppo.advantage ({advantage}), which "
                "judges whole responses; try 1"
            )
        if not self.ppo.has_critics and self.ama is not None and self.ama.source == "critics":
            raise ValueError(
                f"ama.source (critics) needs critics, and ppo.advantage ({advantage}) has none; "
                "try ama.source=both"
            )
        return self

    @model_validator(mode="after")
    def _a_critic_of_two_heads_has_two(self) -> Self:
        if self.learner.two_headed_critic and len(self.critics) < 2:
            raise ValueError(
                "learner.two_headed_critic (true) needs values of rewards and of costs, and "
                f"ppo.advantage ({self.ppo.advantage}) with this constraint has "
                f"{' and '.join(self.critics) or 'none'}; try learner.two_headed_critic=false"
            )
        return self

    @model_validator(mode="after")
    def _multiplier_starts_below_its_cap(self) -> Self:
        constraint = self.constraint
        if constraint is not None and constraint.init > constraint.max:
            raise ValueError(
                f"constraint.init ({constraint.init}) must be at most constraint.max "
                f"({constraint.max}); try {constraint.max}"
            )
        return self

    @model_validator(mode="after")
    def _constraint_sees_a_cost(self) -> Self:
        classes = [category for category, share in self.fdc.mixture.items() if share]
        if (
            self.constraint is not None
            and self.constraint.scope == "safety"
            and not any(category.is_safety for category in classes)
        ):
            raise ValueError(
                "constraint.scope (safety) averages the cost of EHD, IHD and MHD, so fdc.mixture "
                f"({', '.join(classes)}) must give one of them a share; give it one, or try "
                "constraint.scope=all or constraint=off"
            )
        return self

    @model_validator(mode="after")
    def _paths_come_together(self) -> Self:
        if self.data.is_built_in:
            require_no_inputs(self.data)
            return self
        if self.ama is not None:
            require_token_scores(self.data, self.ama.source)
        needs_cost = self.constraint is not None or self.ama is not None
        require_given(self.data, "reward", "prompts", *(["cost"] if needs_cost else []))
        if self.learner.ptx_coef > 0 and not self.data.ptx:
            raise ValueError(
                f"learner.ptx_coef ({self.learner.ptx_coef}) needs data.ptx; give it or set it to 0"
            )
        return self


def _nearest_divisor(total: int, wanted: int) -> int:
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - wanted))
