"""The whole journey: [sft] -> reward model -> cost model -> budget -> alignment -> report.

Each step is a run of `fit` or `train` in a folder of its own, so it is resumed, found again and
reported as every run is; nothing here remembers what was done.
"""

from __future__ import annotations

from pathlib import Path

from actors.cluster import ray_cluster
from actors.fit import fit
from actors.launch import train
from equilibrate.config.align import AlignConfig, Journey, Step
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError
from equilibrate.models.sidecar import propose_budget
from equilibrate.run.capacity import check_this_machine
from equilibrate.run.door import SCORERS, check_inputs
from equilibrate.run.folder import say


def align(config: AlignConfig) -> int:
    """Take every step that is not taken yet.

    Returns: the exit code, 0, or that of the first step that was stopped.
    Raises: as `fit` and `train`; what can be known of all steps is checked before the first.
    """
    journey = Journey(config)
    _check(journey)
    with ray_cluster():
        names = [step.name for step in journey.steps()]
        for number, name in enumerate(names, start=1):
            # Again, with what the steps before have made: the budget hangs on the cost model.
            budget = _budget(journey) if name == "align" else None
            (step,) = (step for step in journey.steps(budget) if step.name == name)
            say(f"step {number} of {len(names)}: {name}, in {journey.folder(name)}")
            if code := _take(step):
                return code
    say(f"aligned model:         {journey.model('align')}")
    say(f"report:                {journey.folder('align') / 'report.html'}")
    say(f"serve it:              python -m equilibrate serve {journey.folder('align')}")
    return 0


def _take(step: Step) -> int:
    if isinstance(step.config, TrainConfig):
        return train(step.config)
    return fit(step.config)


def _check(journey: Journey) -> None:
    """Raises: ConfigError or DataError for what would stop a later step after hours."""
    made: set[str] = set()
    for step in journey.steps():
        check_this_machine(step.config)
        data = step.config.data
        # What an earlier step makes is not there yet; its tokens are those of the first policy.
        changes: dict[str, str] = {kind: "" for kind in SCORERS if getattr(data, kind) in made}
        if data.policy in made:
            changes["policy"] = journey.config.policy
        here = step.config.model_copy(update={"data": data.model_copy(update=changes)})
        try:
            check_inputs(here)
        except (ConfigError, DataError) as error:
            raise type(error)(f"step {step.name}: {error}") from None
        made.add(str(step.model))
    if _needs_a_proposal(journey) and journey.config.cost:
        propose_budget(Path(journey.config.cost), journey.config.max_unsafe_share)


def _needs_a_proposal(journey: Journey) -> bool:
    constraint = journey.config.steps.align.get("constraint", {})
    is_free = not isinstance(constraint, dict) or "budget" in constraint
    return journey.config.by == "ppo" and not is_free


def _budget(journey: Journey) -> float | None:
    if not _needs_a_proposal(journey):
        return None
    share = journey.config.max_unsafe_share
    budget = propose_budget(Path(journey.scorer("cost")), share)
    say(
        f"constraint.budget: {budget:g}, the mean cost of answers of which {share:.0%} are unsafe, "
        "by the cost model's held-out answers"
    )
    return budget
