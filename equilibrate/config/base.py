"""What every kind of run has in its settings."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from equilibrate.config.formats import SETTINGS_FORMAT, require_today
from equilibrate.config.identity import InputPath, Mark, mark_of
from equilibrate.config.sources import reads_text, sources_of
from equilibrate.types import Category

Phase = Literal["start", "generate", "score", "update", "sync", "save", "load", "export"]
"""What a worker can be asked to do."""


GPU_UTILIZATION = 0.9
"""Of an engine's share of a GPU that it may fill."""


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def off_is_none(value: object) -> object:
    """YAML 1.1 reads a bare `off` as False; both spellings switch the feature off."""
    return None if value is False or value == "off" else value


def type_is(default: str) -> BeforeValidator:
    """`constraint.budget=0.1` alone keeps the kind of controller that is the default."""

    def fill(value: object) -> object:
        return {"type": default, **value} if isinstance(value, dict) else value

    return BeforeValidator(fill)


def _is_folder_here(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("must name a folder; try runs/mine")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value):
        raise ValueError(
            "must be a folder of a file system, not an address; mount the store and give that "
            "path, or copy the folder there when the run has ended"
        )
    if value.startswith("~"):
        raise ValueError(f"must be written out; try {os.path.expanduser(value)}")
    if not os.path.isabs(value) and Path(os.path.normpath(value)).parts[:1] == ("..",):
        # Under `ray job submit` the working folder is a copy in Ray's temporary files.
        raise ValueError(
            f"must not lead out of the working folder; try its whole path, {os.path.abspath(value)}"
        )
    return value


OUR_ARGUMENTS = (
    "messages",
    "add_generation_prompt",
    "strftime_now",
    "chat_template",
    "tokenize",
    "tools",
    "documents",
    "return_dict",
    "return_tensors",
    "return_assistant_tokens_mask",
    "continue_final_message",
    "tokenizer_kwargs",
    "padding",
    "truncation",
    "max_length",
)
"""Names of what `Renderer` or transformers itself gives to a template or takes for it."""
OutputFolder = Annotated[str, AfterValidator(_is_folder_here), Mark.CARRIES_OUT]
"""A folder to be written: under the working folder, or a whole path."""


class InputsConfig(Config):
    """Where the rows of a run come from."""

    max_rejected_fraction: Annotated[float, Mark.CARRIES_OUT] = Field(0.01, ge=0, lt=1)
    """Share of the rows of a file that may break a rule: they are left out and listed in
    `rejected.jsonl` of the run. A wrong converter breaks most rows and is refused."""
    columns: dict[str, str] = {}
    """What columns of other names hold, for example {prompt: Question, response: Answer}; of a file
    that has all of them nothing else is read."""
    licences: Annotated[dict[str, str], Mark.CARRIES_OUT] = {}
    """Licences of the inputs by their keys here, for example {prompts: cc-by-nc-4.0}: the model
    card states them."""

    @field_validator("licences")
    @classmethod
    def _are_of_inputs(cls, value: dict[str, str]) -> dict[str, str]:
        inputs = [name for name, field in cls.model_fields.items() if mark_of(field) is Mark.INPUT]
        if unknown := sorted(value.keys() - set(inputs)):
            raise ValueError(
                f"{unknown[0]!r} must be an input's key ({', '.join(inputs)}); try "
                f"{{{inputs[-1]}: cc-by-4.0}}"
            )
        return value


def require_no_shares(data: Config, *keys: str, prefix: str = "data.") -> None:
    """Raises: ValueError if files that are read whole are given shares."""
    for key in keys:
        if any(entry.share for entry in getattr(data, key)):
            raise ValueError(
                f"{prefix}{key} is read whole, so its files have no share; leave it out"
                + (", or choose by fdc.amounts" if key == "train" else "")
            )


_OF_EVERY_MACHINE = {
    "CPU": "set cpus",
    "GPU": "set gpus",
    "memory": "name the machines that have enough of it, for example {big_memory: 1}",
    "object_store_memory": "leave it out: it is shared",
}


class WorkerGroup(Config):
    """How many processes do one job and what each reserves in the cluster."""

    num_workers: int = Field(1, gt=0)
    cpus: Annotated[float, Mark.CARRIES_OUT] = Field(1.0, ge=0)
    gpus: Annotated[float, Mark.CARRIES_OUT] = Field(0.0, ge=0)
    resources: Annotated[dict[str, Annotated[float, Field(gt=0)]], Mark.CARRIES_OUT] = {}
    """What else a worker reserves of its machine, by the names that the machines were given, for
    example {big_memory: 1} after `ray start --resources '{"big_memory": 8}'`: only those are
    used."""

    @field_validator("resources")
    @classmethod
    def _are_not_counted_elsewhere(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value.keys() & _OF_EVERY_MACHINE.keys():
            raise ValueError(f"{name!r} is no resource of its own; {_OF_EVERY_MACHINE[name]}")
        return value


class SamplingConfig(WorkerGroup):
    """How responses are sampled."""

    max_new_tokens: int = Field(512, gt=0)
    """Longest response, in tokens; most answers of chat models end before."""
    max_model_len: int = Field(2048, gt=0)
    """Longest prompt and response together, in tokens."""
    temperature: float = Field(1.0, gt=0)
    memory_gib: Annotated[float, Mark.CARRIES_OUT] = Field(1.0, gt=0)
    """KV cache on CPU; ignored on CUDA, where vLLM's own default share of the GPU is used."""


class ScoringConfig(WorkerGroup):
    max_tokens_per_batch: int = Field(8192, gt=0)
    """Padded tokens of one forward pass."""


class PivotConfig(Config):
    """Where a segment starts: at steps of the token signal larger than kappa."""

    rule: Literal["std", "quantile", "const"] = "std"
    value: float = 1.0
    """std: kappa = mean + value * std of a response's steps; quantile: that one; const: kappa."""


class MaskConfig(Config):
    """Which tokens of an answer may move the policy: keep_t = side * (signal_t - baseline) > 0."""

    level: Literal["token", "segment", "sequence"] = "token"
    source: Literal["reward", "cost", "both", "critics"] = "both"
    """Whose token scores: R, -C, (R - lambda C)/(1 + lambda), or the same from the two critics."""
    delta: bool = True
    """Use the step r_t - r_(t-1), one token's credit, instead of the score of the whole prefix."""
    baseline: Literal["zero", "batch_mean", "sequence_mean"] | float = "zero"
    ungated: tuple[Category, ...] = ()
    """Classes whose responses are never masked."""
    random_control: bool = False
    """Keep as many tokens as the mask would, drawn at random: the control of claims about AMA."""
    normalizer: Literal["kept", "all"] = "kept"
    """Divide the policy loss by the kept tokens or by all response tokens."""
    pivots: PivotConfig = PivotConfig()


class JudgeConfig(Config):
    """Who says whether an answer is harmful, a refusal, helpful. It changes no trained weight."""

    name: str = ""
    """A judge by its name, see docs/evaluation.md. Empty: in the built-in world its oracle, on your
    own models `refusals`, for which every answer to a harmful request that does not refuse is
    harmful."""
    options: dict[str, Any] = {}
    """Options of that judge, as `evaluate` takes them after its name."""
    agreement: Annotated[tuple[str, ...], Mark.CARRIES_OUT] = ()
    """Files that `python -m equilibrate judge --json` wrote of this judge: the report cites them,
    and a judge that one of them calls unfit is refused."""

    @model_validator(mode="after")
    def _options_are_of_a_judge(self) -> Self:
        if not self.name and (self.options or self.agreement):
            key = "options" if self.options else "agreement"
            raise ValueError(f"{key} is given without a name; name the judge, for example refusals")
        return self


class SandboxConfig(Config):
    """Sizes of the built-in world and of the training that precedes PPO."""

    seed: int = Field(0, ge=0)
    base_steps: int = Field(1500, gt=0)
    pairs: int = Field(40_000, gt=1)
    """Preference pairs for the reward model; the cost model learns from half as many."""
    evaluation_per_cell: int = Field(256, gt=0)
    policy: InputPath = ""
    """Policy folder that was trained in this world, to start from in place of its base."""
    notes: bool = False
    """Measure with notes too: every held-out prompt a second time, after an earlier turn that asks
    what its object is and is told; in cells whose names end in `_noted`."""


class TextConfig(Config):
    """How conversations become tokens, beside what the model folder's own chat template says."""

    template_arguments: dict[str, bool | int | float | str] = {}
    """Variables of the template, for example {enable_thinking: false}."""
    date: dt.date = dt.date(2024, 7, 26)
    """Day, YYYY-MM-DD, that a template which reads the clock is told. Fixed, so that no result
    hangs on when a run was started; by default the day to which Llama 3's template falls back."""

    @field_validator("template_arguments")
    @classmethod
    def _are_free(cls, value: dict[str, object]) -> dict[str, object]:
        for name in value:
            if name in OUR_ARGUMENTS or not name.isidentifier():
                raise ValueError(
                    f"{name!r} must be a variable of the chat template that is not ours (ours: "
                    f"{', '.join(OUR_ARGUMENTS)}); try enable_thinking"
                )
        return value


COST_METRICS: Mapping[str, str] = {"all": "cost", "safety": "safety_cost"}
"""`constraint.scope` -> the metric that a budget bounds."""
SHARE_METRICS: Mapping[str, str] = {"all": "unsafe_fraction_all", "safety": "unsafe_fraction"}
"""`constraint.scope` -> the metric that `max_unsafe_share` bounds."""


def require_token_scores(data: Config, source: str) -> None:
    """Raises: ValueError if a mask would read scores of tokens that a scorer does not give.

    Args: source: as of `MaskConfig`.
    """
    for key, kind, given in sources_of(data):
        if source in (kind, "both") and reads_text(given):
            raise ValueError(
                f"ama.source ({source}) reads the score of every token, and data.{key} ({given}) "
                "gives one per answer; give a model folder, or try ama=off"
            )


def require_given(data: Config, *keys: str) -> None:
    """Raises: ValueError naming the first of the inputs that a policy of one's own needs beside
    it."""
    for key in keys:
        if not getattr(data, key):
            raise ValueError(
                f"data.policy is given, so data.{key} must be given too; "
                "without data.policy the built-in world has all of them"
            )


def require_no_inputs(data: Config) -> None:
    """Raises: ValueError if the built-in world would be used in place of what is given."""
    given = [key for key in ("reward", "cost", "prompts", "train", "evaluation", "ptx")
             if getattr(data, key, "")]  # fmt: skip
    if given:
        raise ValueError(
            f"data.{given[0]} is given without data.policy, and the built-in world has its own; "
            "give data.policy too, or leave it out"
        )


class RunConfig(Config):
    """What every kind of run has, whatever it trains by."""

    settings_format: Annotated[int, BeforeValidator(require_today), Mark.CARRIES_OUT] = (
        SETTINGS_FORMAT
    )
    """Number of their format, which every run folder holds; left out by hand."""
    output: OutputFolder
    seed: int = Field(0, ge=0)
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: the generator's weights and autocast in training; parameters stay float32."""
    cpu_threads: int = Field(1, gt=0)
    """Threads of the tensor library in each worker process."""
    timeout_seconds: Annotated[float, Mark.CARRIES_OUT] = Field(600.0, gt=0)
    """Deadline of every remote call and of the reservation in the cluster."""
    phase_seconds: Annotated[dict[Phase, Annotated[float, Field(gt=0)]], Mark.CARRIES_OUT] = {}
    """Deadlines of single phases, in seconds, where they are others than timeout_seconds."""
    max_restarts: Annotated[int, Mark.CARRIES_OUT] = Field(3, ge=0)
    """Lost workers that are replaced before the run stops."""
    text: TextConfig = TextConfig()
    judge: JudgeConfig = JudgeConfig()
    sandbox: SandboxConfig = SandboxConfig()
    rollout: SamplingConfig = SamplingConfig()
    scoring: ScoringConfig = ScoringConfig()

    def deadline(self, phase: Phase) -> float:
        """Seconds after which workers that are still in a phase count as hung."""
        # A sync moves bytes only: half the time of what computes.
        share = 0.5 if phase == "sync" else 1.0
        return self.phase_seconds.get(phase, share * self.timeout_seconds)

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        rollout = self.rollout
        if rollout.max_new_tokens >= rollout.max_model_len:
            raise ValueError(
                f"rollout.max_new_tokens ({rollout.max_new_tokens}) must be below "
                f"rollout.max_model_len ({rollout.max_model_len}); try {rollout.max_model_len // 2}"
            )
        return self


SCORED_BY = ("device", "dtype", "cpu_threads", "scoring")
"""Settings that the scores of given answers by given models depend on."""
SAMPLED_BY = (
    "seed",
    "device",
    "dtype",
    "cpu_threads",
    "text",
    *(f"rollout.{name}" for name in SamplingConfig.model_fields),
)
"""Settings that the answers of a given policy to given prompts depend on."""
