"""What can be known of a run's inputs before any process is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equilibrate.config.align import Journey, Step
from equilibrate.config.base import JudgeConfig
from equilibrate.config.files import load_run_config
from equilibrate.config.fit import FitConfig
from equilibrate.config.identity import fixed_on_resume, require_fixed
from equilibrate.config.inputs import InputFile
from equilibrate.config.sources import reads_text, shown
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError
from equilibrate.models.sidecar import propose_budget
from equilibrate.run.checkpoint import LATEST
from equilibrate.sandbox.words import MAX_LENGTH
from equilibrate.types import ScorerKind

SCORERS: tuple[ScorerKind, ...] = ("reward", "cost")


def check_inputs(config: TrainConfig | FitConfig, run: Path | None = None) -> None:
    """Read what is cheap to read of the user's folders and files, the prompts in full.

    Args: run: the run's folder, which gets the rows that break a rule; None writes nothing.
    Raises: DataError naming the key or the file and what is wrong with it.
    """
    _check_judge(config.judge)
    data = config.data
    if data.is_built_in:
        _require_sizes_of_the_world(config)
        _require_layers_of_the_world(config)
        return
    for key in ("policy", "notes"):
        if value := getattr(config.sandbox, key):
            raise ConfigError(
                f"sandbox.{key} ({value}) is for the built-in world; leave it out with data.policy"
            )
    # Late: it loads what the built-in world's settings need not wait for.
    from equilibrate.run.inputs import check_files

    check_files(config, run)


def _require_layers_of_the_world(config: TrainConfig | FitConfig) -> None:
    group = config.trainer if isinstance(config, FitConfig) else config.learner
    if not group.asks_for_layers:
        return
    from equilibrate.models.trainable import require_trainable  # late: as above
    from equilibrate.sandbox.model import build_model
    from equilibrate.sandbox.tokenizer import build_tokenizer

    require_trainable(build_model(build_tokenizer(), seed=0), group)


def check_journey(journey: Journey) -> None:
    """What would stop a later step of `align` after the hours of those before it.

    Raises: ConfigError or DataError naming the step.
    """
    made: set[str] = set()
    for step in journey.steps():
        data = step.config.data
        # What an earlier step makes is not there yet; its tokens are those of the first policy.
        changes: dict[str, Any] = {kind: "" for kind in SCORERS if getattr(data, kind) in made}
        if data.policy in made:
            changes["policy"] = journey.config.policy
        # What the policy is measured on must teach none of the models, whatever a step reads.
        changes["evaluation"] = data.evaluation or journey.config.evaluation
        here = step.config.model_copy(update={"data": data.model_copy(update=changes)})
        try:
            require_same_start(journey, step)
            check_inputs(here)
        except (ConfigError, DataError) as error:
            where = f"its settings stand under steps.{step.name}"
            raise type(error)(f"step {step.name} ({where}): {error}") from None
        made.add(str(step.model))
    if journey.config.cost:
        proposed_budget(journey)


def proposed_budget(journey: Journey) -> float | None:
    """`constraint.budget` by the calibration of the cost model; None where nothing asks for it, or
    the cost model is still to be made.

    Raises: as `propose_budget`.
    """
    source = journey.scorer("cost")
    cost = Path(source)
    if journey.needs_budget and reads_text(source):
        raise ConfigError(
            f"cost ({shown(source)}) is no folder and has no calibration, so no budget can be "
            "proposed; set steps.align.constraint.budget"
        )
    if not journey.needs_budget or not (cost.exists() or journey.config.cost):
        return None
    return propose_budget(cost, journey.config.max_unsafe_share)


def require_same_start(journey: Journey, step: Step) -> None:
    """Refuse other settings of a step once the alignment has checkpoints: the step would be made
    anew, over what they started from, and the alignment could not go on.

    Raises: ConfigError naming the key and the folder.
    """
    run = Path(step.config.output)
    if not (journey.folder("align") / "checkpoints" / LATEST).is_file():
        return
    if (run / "config.yaml").is_file():
        before, now = fixed_on_resume(load_run_config(run)), fixed_on_resume(step.config)
        for settings in (before, now):
            settings.pop("constraint.budget", None)  # hangs on the cost model, which is the same
        require_fixed(before, now, run)


def require_path(key: str, path: str) -> Path:
    """Raises: DataError naming the key if there is nothing at the path; what is no path at all, but
    a scorer that reads text, is a matter of `equilibrate.learning.sources`."""
    scores = key.partition("[")[0] in (*SCORERS, "more_rewards")
    if scores and reads_text(path):
        return Path(path)
    if not Path(path).exists():
        from equilibrate.data.readers import is_hub_name  # late: as above

        hint = "give an existing file or folder"
        if scores:
            hint += ", FILE.py:function, package.module:function or http://host/path"
        if key != "policy" and not scores and not Path(path).suffix and is_hub_name(path):
            hint += (
                f"; a data set of the hub is brought here first: hf download {path} --repo-type "
                "dataset --local-dir FOLDER"
            )
        raise DataError(f"data.{key} ({path!r}) does not exist; {hint}")
    # Workers may have another working folder.
    return Path(path).absolute()


def require_files(key: str, files: Sequence[InputFile]) -> Sequence[InputFile]:
    """Raises: DataError naming the key of one that does not exist."""
    for place, entry in enumerate(files):
        require_path(key if len(files) == 1 else f"{key}[{place}]", entry.file)
    return files


def _check_judge(judge: JudgeConfig) -> None:
    """Raises: ConfigError for a judge that does not exist, or that was measured and is unfit."""
    if not judge.name:
        return
    from equilibrate.evaluation.agreement import MAX_FALSE_ALARMS, read_agreement
    from equilibrate.evaluation.judge_plugins import check_judge, source_of

    check_judge(judge.name, judge.options)
    for file in judge.agreement:
        measured = read_agreement(Path(file))
        named = (judge.name, judge.options)
        source = source_of(measured["verdict"], *named)
        if (measured["judge"], measured["options"]) not in (named, source):
            raise ConfigError(
                f"judge.agreement ({file}) is of judge {measured['judge']!r} with the options "
                f"{measured['options']}, and the settings name {source[0]!r} with "
                f"{source[1]}; measure that one by `python -m equilibrate judge`"
            )
        if measured["fit"] is False:
            raise ConfigError(
                f"judge.name ({measured['judge']}) is unfit by {file}: it raises false alarms on "
                f"more than {MAX_FALSE_ALARMS:.0%} of answers to harmless look-alikes; take another"
            )


def _require_sizes_of_the_world(config: TrainConfig | FitConfig) -> None:
    start = config.sandbox.policy
    if start and not Path(start, "config.json").is_file():
        raise ConfigError(
            f"sandbox.policy ({start}) must be the folder of a policy; try that of a finished run "
            "in the built-in world, runs/NAME/aligned"
        )
    length = config.rollout.max_model_len
    if length > MAX_LENGTH:
        file = "sandbox.yaml" if isinstance(config, TrainConfig) else "fit.yaml"
        raise ConfigError(
            f"rollout.max_model_len ({length}) must be at most {MAX_LENGTH} in the built-in world, "
            f"which is what trains without data.policy; try --config deploy/configs/{file}, which "
            "has its sizes and learning rates, or give data.policy"
        )
