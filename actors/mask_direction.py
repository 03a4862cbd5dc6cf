"""What the masks of a study do to the gradient, where its trainings begin and where they ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from actors.cluster import ray_cluster
from actors.fit import find_answers
from actors.prepare import prepare_fit_inputs
from actors.study import stages_of_study
from actors.workbench import Workbench
from equilibrate.config.files import parse_settings, resolve_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.study import StudyConfig, read_base
from equilibrate.errors import ConfigError
from equilibrate.models.device import Accelerator
from equilibrate.models.loading import load_policy
from equilibrate.offline.mask_direction import MaskDirection, mask_directions
from equilibrate.offline.table import load_answers
from equilibrate.run.contents import Contents
from equilibrate.run.folder import say
from equilibrate.run.sinks import JsonlFile
from equilibrate.study import PlannedRun, expand, plan_runs

MOST_EXAMPLES = 1024
ROWS_FILE = "mask_direction.jsonl"


def measure_masks(study: StudyConfig, *, most_examples: int = MOST_EXAMPLES) -> int:
    """Print and write a row for every masked arm of `fit`, seed and place.

    The place is `start`, the policy that training begins with, and `end`, the trained one of a run
    that is finished. What precedes the trainings is made where it is missing.

    Args: most_examples: at random, of the classes that the mask touches.
    Returns: the exit code.
    Raises: ConfigError if no arm has a mask.
    """
    contents = Contents(stages_of_study(study))
    runs = [
        (run, config)
        for run in plan_runs(expand(study, read_base(study)), resolve_settings, contents.of)
        if run.kind == "fit" and (config := parse_settings(FitConfig, run.config)).ama is not None
    ]
    if not runs:
        raise ConfigError(
            f"arms of {study.name} must have a mask in `fit` for --mask-direction; "
            "give one `set: {ama: {}}`"
        )
    output = Path(study.output).resolve()
    rows = JsonlFile(output / ROWS_FILE)
    rows.truncate(0)
    with ray_cluster():
        for run, config in runs:
            for place, name, found in _measured(study, run, config, most_examples):
                row = {"arm": run.arms[0], "seed": run.seed, "place": place, "mask": name}
                rows.append(row | asdict(found))
                say(
                    f"{run.arms[0]} seed {run.seed}, {place}: {name:<6} kept "
                    f"{found.kept_fraction:.2f}  cosine {found.cosine:.3f}  "
                    f"length {found.length:.2f}"
                )
    rows.close()
    say(f"rows: {rows.path}")
    return 0


def _measured(
    study: StudyConfig, run: PlannedRun, config: FitConfig, most_examples: int
) -> Iterator[tuple[str, str, MaskDirection]]:
    """Place, mask and what it does there."""
    stages = stages_of_study(study)
    inputs = prepare_fit_inputs(config, stages, say)
    config = config.model_copy(update={"output": str(Path(study.output).resolve() / "masks")})
    with Workbench(config, inputs) as bench:
        table = load_answers(find_answers(config, inputs, bench, stages, Contents(stages)))
    torch.set_num_threads(config.cpu_threads)
    aligned = Path(study.output).resolve() / "runs" / run.key / "aligned"
    for place, folder in (("start", inputs.policy), ("end", aligned)):
        if not (folder / "config.json").is_file():
            say(f"{run.arms[0]} seed {run.seed}, {place}: not trained yet")
            continue
        policy = load_policy(folder, Accelerator("cpu", "float32"))
        found = mask_directions(policy, table, config, most_examples=most_examples)
        for name, direction in found.items():
            yield place, name, direction
