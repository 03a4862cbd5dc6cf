"""The whole journey: [sft] -> reward model -> cost model -> budget -> alignment -> report.

Each step is a run of `fit` or `train` in a folder of its own, so it is resumed, found again and
reported as every run is; nothing here remembers what was done.
"""

from __future__ import annotations

from actors.cluster import ray_cluster
from actors.fit import fit
from actors.launch import train
from equilibrate.config.align import AlignConfig, Journey, Step
from equilibrate.config.train import TrainConfig
from equilibrate.errors import EXIT_STOPPED
from equilibrate.run.capacity import check_this_machine
from equilibrate.run.door import check_journey, proposed_budget
from equilibrate.run.folder import say
from equilibrate.run.policies import with_whole_policy
from equilibrate.run.space import require_space_of_journey


def align(config: AlignConfig) -> int:
    """Take every step that is not taken yet.

    Returns: the exit code, 0, or that of the first step that was stopped.
    Raises: as `fit` and `train`; what can be known of all steps is checked before the first.
    """
    journey = Journey(with_whole_policy(config))
    check_journey(journey)
    for step in journey.steps():
        check_this_machine(step.config)
    require_space_of_journey(journey)
    try:
        code = _take_all(journey)
    except KeyboardInterrupt:  # between two steps, or while a cluster starts
        say("stopped; the same command goes on from the last checkpoint")
        return EXIT_STOPPED
    if code == 0:
        folder = journey.folder("align")
        say(f"aligned model:         {journey.model('align')}")
        say(f"report:                {folder / 'report.html'}")
        say(f"serve it:              python -m equilibrate serve {folder}")
    return code


def _take_all(journey: Journey) -> int:
    names = [step.name for step in journey.steps()]
    with ray_cluster():
        for number, name in enumerate(names, start=1):
            # Again, with what the steps before have made: the budget hangs on the cost model.
            budget = _budget(journey) if name == "align" else None
            (step,) = (step for step in journey.steps(budget) if step.name == name)
            say(f"step {number} of {len(names)}: {name}, in {journey.folder(name)}")
            if code := _take(step):
                return code
    return 0


def _take(step: Step) -> int:
    if isinstance(step.config, TrainConfig):
        return train(step.config)
    return fit(step.config)


def _budget(journey: Journey) -> float | None:
    budget = proposed_budget(journey)
    if budget is not None:
        say(
            f"constraint.budget: {budget:g}, the mean cost of answers of which "
            f"{journey.config.max_unsafe_share:.0%} are unsafe, by those that calibrated the model"
        )
    return budget
