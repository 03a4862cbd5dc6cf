"""Offline training from settings to a report: data, scores, training, evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from actors.cluster import interrupt_on_sigterm, ray_cluster
from actors.offline import STEPS_FILE, train_on_cluster
from actors.prepare import (
    SAMPLING,
    TRAINING,
    FitInputs,
    contents_of,
    make_or_find,
    prepare_fit_inputs,
)
from actors.workbench import Workbench
from equilibrate.config.base import SAMPLED_BY, SCORED_BY
from equilibrate.config.fit import ArsConfig, FitConfig
from equilibrate.config.identity import only, result_settings, training_settings
from equilibrate.errors import EXIT_STOPPED
from equilibrate.evaluation import Judge, check_disjoint
from equilibrate.fdc.mixture import choose_amounts
from equilibrate.models.sidecar import read_heads
from equilibrate.offline.labelled import (
    chosen_columns,
    labelled_answers,
    naming,
    require_pairs,
)
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.offline.policy_loss import require_something_to_mask
from equilibrate.offline.sampling import best_and_worst
from equilibrate.offline.table import AnswerTable, load_answers, table_of_pairs
from equilibrate.planner.commands import warn_of_memory
from equilibrate.report import summarise_training
from equilibrate.report.inputs import shares_of
from equilibrate.report.results import write_outcome
from equilibrate.run.assessment import Assessor
from equilibrate.run.capacity import check_this_machine
from equilibrate.run.contents import Contents
from equilibrate.run.door import check_inputs
from equilibrate.run.folder import measured, own_run_folder, read_fitting, say, stages_of
from equilibrate.run.inputs import by_row
from equilibrate.run.metrics import mixture_metrics
from equilibrate.run.policies import with_whole_policy
from equilibrate.run.sinks import SAMPLES_FILE
from equilibrate.run.space import require_space
from equilibrate.run.stages import Stage, short_hash
from equilibrate.run.versions import library_versions
from equilibrate.run.watch import ScoreWatch
from equilibrate.text.renderer import Renderer
from equilibrate.types import Conversation, PromptBatch, ScorerKind

KEY_FILE = "training.key"
FIGURES_FILE = "training.json"
"""What the training reports about itself."""
LABELLED_BY = (
    "output",
    "seed",
    "objective",
    "fdc",
    "text",
    "max_length",
    "data.columns",
    "data.max_rejected_fraction",
    "data.prefer",
    "sandbox.seed",
    "rollout.max_new_tokens",
    "rollout.max_model_len",
)
"""Settings that the answers depend on which a policy is trained on, if they are given."""
SAMPLED_TOGETHER = 1024
"""Prompts that one call of the generator takes: a set of any size passes through in parts."""
TRAINED = 1
"""Version of the trained policy; what it started from has version 0."""


def fit(config: FitConfig) -> int:
    """Make or find the inputs, train, evaluate and report; resumes what was begun.

    Returns: the exit code, 0 or EXIT_STOPPED.
    """
    try:
        return _fit(config)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from the last checkpoint")
        return EXIT_STOPPED


def _fit(config: FitConfig) -> int:
    config = with_whole_policy(config)
    with own_run_folder(config) as run:
        if run is None:
            return 0
        check_this_machine(config)
        check_inputs(config, run)
        require_space(config)
        warn_of_memory(config)
        with ray_cluster():
            interrupt_on_sigterm()
            folder = stages_of(run)
            with measured(run, "prepare"):
                inputs = prepare_fit_inputs(config, folder, say)
            with Workbench(config, inputs) as bench:
                fit_with(config, run, inputs, bench, folder)
    return 0


def fit_with(
    config: FitConfig, run: Path, inputs: FitInputs, bench: Workbench, stages: Path
) -> None:
    """Train and measure one policy in its folder `run`."""
    bench.turn_to(config)
    contents = Contents(stages)
    with measured(run, "data"):
        answers = find_answers(config, inputs, bench, stages, contents)
    key = _training_key(config, inputs, answers, contents)
    if _trained_key(run) != key:
        if config.ama is not None:
            require_something_to_mask(load_answers(answers), config.ama)
        _forget(run)
        (run / KEY_FILE).write_text(key)
    if not (run / result_name(config) / "config.json").is_file():
        bench.make_room()
        with measured(run, "train"):
            train_model(config, inputs.policy, answers, run)
    _measure(config, run, inputs, bench)


def find_answers(
    config: FitConfig, inputs: FitInputs, bench: Workbench, stages: Path, contents: Contents
) -> Path:
    """The folder of the `AnswerTable` that training learns from, made if it is missing."""
    return make_or_find(_answers_stage(config, inputs, bench, contents), stages, say)


def _training_key(config: FitConfig, inputs: FitInputs, answers: Path, contents: Contents) -> str:
    """Of all that the trained policy depends on."""
    return short_hash(
        {
            "settings": training_settings(config),
            "policy": contents.of(inputs.policy),
            "answers": answers.name,
            "versions": library_versions(TRAINING),
        }
    )


def _trained_key(run: Path) -> str | None:
    """The key of what the folder holds, trained or half-way; None if it holds nothing."""
    file = run / KEY_FILE
    return file.read_text() if file.is_file() else None


def _forget(run: Path) -> None:
    """Remove what an earlier training with other settings or data left in the folder."""
    # First: while a key is there, so is all that was made under it.
    (run / KEY_FILE).unlink(missing_ok=True)
    for name in ("aligned", "reward", "cost", "scorer", "training"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in (
        FIGURES_FILE,
        STEPS_FILE,
        "results.json",
        "base.json",
        "aligned.json",
        SAMPLES_FILE,
    ):
        (run / name).unlink(missing_ok=True)


def evaluate_fit(config: FitConfig, run: Path, judge: Judge | None = None) -> int:
    """Sample the trained policy of a finished run and its start again; results and report anew."""
    with ray_cluster():
        inputs = prepare_fit_inputs(config, stages_of(run), say)
        inputs = replace(inputs, judge=judge or inputs.judge, shared_base=None)
        with Workbench(config, inputs) as bench:
            _measure(config, run, inputs, bench)
    return 0


def train_model(config: FitConfig, start: Path, answers: Path, run: Path) -> None:
    """Train on a saved `AnswerTable` into `run`: the model's folder and the figures beside it.

    Raises: as `train_on_cluster`.
    """
    work = run / "training"
    work.mkdir(exist_ok=True)
    say(f"{config.objective.type}: training")
    figures = train_on_cluster(config, start, answers, work, run / STEPS_FILE)
    figures |= mixture_metrics(load_answers(answers).shares)
    (run / FIGURES_FILE).write_text(json.dumps(figures, indent=1) + "\n")
    # Last: a folder of this name is complete, and so is what stands beside it.
    work.rename(run / result_name(config))


def result_name(config: FitConfig) -> str:
    """Folder of the trained model in its run."""
    return "aligned" if config.trains == "policy" else config.trains


def _measure(config: FitConfig, run: Path, inputs: FitInputs, bench: Workbench) -> None:
    renderer = Renderer(inputs.policy, config.text)
    prompts = []
    if inputs.evaluation:
        prompts = read_fitting(inputs.evaluation, renderer, config, run)
    if prompts:
        with measured(run, "evaluate"):
            assessor = Assessor(
                run,
                prompts,
                rollouts=bench.generator,
                judge=inputs.judge,
                decode=renderer.decode,
                every=0,
                shared_base=inputs.shared_base,
            )
            if not assessor.find_base():
                bench.load(inputs.policy, 0)
                assessor.measure_base()
            bench.load(run / "aligned", TRAINED)
            assessor.in_full("aligned", TRAINED)
    figures = json.loads((run / FIGURES_FILE).read_text())
    mixture = {name: figures.pop(f"mixture_{name}") for name in shares_of(figures)}
    training = replace(summarise_training(run), figures=figures, mixture=mixture)
    write_outcome(config, run, prompts, inputs.judge, training=training, cost_budget=None)
    if config.trains != "policy":
        heads = read_heads(run / config.trains)
        said = [held_out_order(head.calibration) for head in heads]
        if len(heads) > 1:
            said = [f"{head.kind}: {order}" for head, order in zip(heads, said, strict=True)]
        keys = " and ".join(f"data.{head.kind}" for head in heads)
        say(f"{config.trains} model: {run / config.trains}, for {keys}; {'; '.join(said)}")


def held_out_order(figures: Mapping[str, float]) -> str:
    """What a scorer's calibration says of its order; of answers of one side alone nothing."""
    order = figures.get("ranking_accuracy")
    if order is None:
        return "its held-out answers are all of one side, so nothing was measured of its order"
    said, area = [], figures.get("auc")
    if "num_pairs" in figures:
        said.append(f"in order on {order:.1%} of {figures['num_pairs']:.0f} held-out pairs")
    else:
        area = order
    if area is not None:
        said.append(f"AUC {area:.3f} over {figures['num_answers']:.0f} held-out answers")
    return "; ".join(said)


def _answers_stage(
    config: FitConfig, inputs: FitInputs, bench: Workbench, contents: Contents
) -> Stage:
    """The answers as arrays, scored where the objective or its mask asks for it."""
    objective = OBJECTIVES[config.objective.type]
    needs_scores = objective.needs_reference or config.ama is not None
    is_sampled = isinstance(config.objective, ArsConfig)
    config = only(
        config,
        *LABELLED_BY,
        *(SCORED_BY if needs_scores or is_sampled else ()),
        *((*SAMPLED_BY, "multiplier") if is_sampled else ()),
    )
    held = contents_of(inputs, contents)

    def make(folder: Path) -> None:
        if isinstance(config.objective, ArsConfig):
            table = _sampled(config, inputs, bench, config.objective)
        else:
            table = _labelled(config, inputs)
            if needs_scores:
                with bench.scorer_of(inputs) as scorer:
                    table = table.scored(scorer.score)
        table.save(folder)

    return Stage(
        name="answers",
        format=2,
        inputs={"settings": result_settings(config), "contents": held, "scored": needs_scores},
        libraries=SAMPLING,
        make=make,
    )


def _labelled(config: FitConfig, inputs: FitInputs) -> AnswerTable:
    """The answers of the data set, in the amounts that are asked for."""
    with naming(inputs.train):
        columns = chosen_columns(config, inputs.train, Path(config.output), say)
        table = labelled_answers(config, columns, inputs.policy)
        require_pairs(config, table)
    _require_apart(columns["prompt"], inputs, config)
    if table.num_left_out:
        say(
            f"{table.num_left_out} of {len(table.sides) + table.num_left_out} answers left out: "
            f"with their prompts they, or what they are compared with, are beyond max_length "
            f"({config.max_length})"
        )
    return table


def _require_apart(
    texts: Sequence[str | Conversation], inputs: FitInputs, config: FitConfig
) -> None:
    """Evaluation prompts never train."""
    if not inputs.evaluation:
        return
    run = Path(config.output)
    held_out = read_fitting(inputs.evaluation, Renderer(inputs.policy, config.text), config, run)
    check_disjoint(by_row(texts), held_out)


def _sampled(config: FitConfig, inputs: FitInputs, bench: Workbench, ars: ArsConfig) -> AnswerTable:
    """Best and, where it is unlearned, worst of the policy's own answers to each prompt."""
    copies = ars.copies
    prompts = read_fitting(
        inputs.prompts or inputs.train,
        Renderer(inputs.policy, config.text),
        config,
        Path(config.output),
    )
    chosen = choose_amounts(
        [prompt.category for prompt in prompts],
        config.fdc.amounts,
        when_short=config.fdc.when_short,
        seed=config.seed,
    )
    asked = tuple(prompts[row] for row in chosen)
    _require_apart([prompt.conversation for prompt in asked], inputs, config)
    bench.load(inputs.policy, 0)
    pairs = []
    watch = ScoreWatch({kind: {} for kind in get_args(ScorerKind) if getattr(inputs, kind)})
    with bench.scorer_of(inputs) as scorer:
        for start in range(0, len(asked), SAMPLED_TOGETHER):
            some = asked[start : start + SAMPLED_TOGETHER]
            batch = PromptBatch(iteration=0, prompts=some, copies=copies)
            scored = scorer.score(bench.generator.generate(batch, 0))
            watch.observe(scored)
            pairs += best_and_worst(scored, copies=copies, multiplier=config.multiplier)
    return table_of_pairs(pairs, with_worst=ars.negative_coef > 0)
