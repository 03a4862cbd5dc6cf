"""Offline training from settings to a report: data, scores, training, evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datasets import Dataset

from actors.cluster import ray_cluster
from actors.fit_data import AnswerTable, encode_answers, table_of_pairs
from actors.fit_worker import fit_worker
from actors.groups import Role, WorkerGroups
from actors.offline import TrainWorkers, fit_on_cluster
from actors.offline_data import load_columns
from actors.offline_objectives import load_tokenizer
from actors.prepare import (
    STAGES,
    FitInputs,
    identity,
    make_or_find,
    prepare_fit_inputs,
)
from actors.run_folder import claimed, measured, read_fitting, say, write_outcome
from actors.text import TextCodec
from equilibrate.assessment import Assessor
from equilibrate.errors import DataError
from equilibrate.evaluation import Judge, check_disjoint
from equilibrate.fdc.amounts import choose_amounts
from equilibrate.fit_config import ArsConfig, FitConfig
from equilibrate.interfaces import RolloutPool
from equilibrate.preference.answers import Columns, categories_of
from equilibrate.preference.objectives import OBJECTIVES
from equilibrate.preference.sampling import best_and_worst
from equilibrate.report import summarise_training
from equilibrate.sandbox.policy_pairs import policy_pair_rows
from equilibrate.sandbox.world import build_world
from equilibrate.stages import Stage
from equilibrate.types import Category, Prompt, PromptBatch, Rollout, ScoredRollout

FIGURES_FILE = "training.json"
"""What the training reports about itself."""
TRAINED = 1
"""Version of the trained policy; what it started from has version 0."""


class Workbench:
    """Generator and scorers of one starting policy, each started when it is first asked for.

    Several trainings from that policy may share one: a generator takes longer to start than a small
    policy to train.
    """

    def __init__(self, config: FitConfig, inputs: FitInputs) -> None:
        self._config = config
        self._inputs = inputs
        self._open = ExitStack()
        self._groups: dict[object, WorkerGroups] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def suits(self, config: FitConfig, inputs: FitInputs) -> bool:
        """Whether its processes are those that this training would start."""
        return inputs.policy == self._inputs.policy and all(
            getattr(config, name) == getattr(self._config, name) for name in SHARED_SETTINGS
        )

    def score(self, inputs: FitInputs, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """By the reward and cost models of `inputs`, as far as it has them, and the policy."""
        # Losses are those of the policy itself, at whatever temperature it is sampled.
        sampling = self._config.rollout.model_copy(update={"temperature": 1.0})
        config = self._config.model_copy(update={"rollout": sampling})
        groups = self._group("scoring", config, inputs)
        return groups.scorer.score(rollouts)

    def generator_of(self, folder: Path, version: int) -> RolloutPool:
        """The generator, with the weights of a model folder."""
        groups = self._group("rollout", self._config, self._inputs)
        groups.rollouts.sync(groups.weights_of_folder(folder, version))
        return groups.rollouts

    def _group(self, role: Role, config: FitConfig, inputs: FitInputs) -> WorkerGroups:
        key = (role, inputs.reward, inputs.cost) if role == "scoring" else role
        if key not in self._groups:
            groups = WorkerGroups(config, inputs, roles=(role,))
            self._groups[key] = self._open.enter_context(groups)
        return self._groups[key]


SHARED_SETTINGS = (
    "seed", "device", "dtype", "cpu_threads", "timeout_seconds", "rollout", "scoring",
)  # fmt: skip
"""Settings that the processes of a workbench are started with."""


def fit(config: FitConfig, stages: Path | None = None) -> int:
    """Make or find the inputs, train, evaluate and report; resumes what was begun.

    Args: stages: folder of what precedes the training, if several runs share it.
    Returns: the exit code.
    """
    with claimed(config) as run:
        if run is None:
            return 0
        with ray_cluster():
            folder = stages or run / STAGES
            with measured(run, "prepare"):
                inputs = prepare_fit_inputs(config, folder, say)
            with Workbench(config, inputs) as bench:
                fit_with(config, run, inputs, bench, folder)
    return 0


def fit_with(
    config: FitConfig, run: Path, inputs: FitInputs, bench: Workbench, stages: Path
) -> None:
    """Train and measure one policy in its folder `run`."""
    with measured(run, "data"):
        answers = make_or_find(_answers_stage(config, inputs, bench), stages, say)
    trained = run / "aligned"
    if not (trained / "config.json").is_file():
        with measured(run, "train"):
            train_policy(config, inputs.policy, answers, run)
    _measure(config, run, inputs, bench)


def evaluate_fit(config: FitConfig, run: Path, judge: Judge | None = None) -> int:
    """Sample the trained policy of a finished run and its start again; results and report anew."""
    with ray_cluster():
        inputs = prepare_fit_inputs(config, run / STAGES, say)
        inputs = replace(inputs, judge=judge or inputs.judge)
        with Workbench(config, inputs) as bench:
            _measure(config, run, inputs, bench)
    return 0


def train_policy(config: FitConfig, policy: Path, answers: Path, run: Path) -> None:
    """Train on a saved `AnswerTable` into `run`: the folder `aligned` and the figures beside it.

    Raises: as `fit_on_cluster`.
    """
    work = run / "training"
    work.mkdir(exist_ok=True)
    job = {
        "settings": json.loads(config.model_dump_json()),
        "model": str(policy.resolve()),
        "answers": str(answers.resolve()),
        "out": str(work),
    }
    trainer = config.trainer
    workers = TrainWorkers(
        num_workers=trainer.num_workers,
        cpus=trainer.cpus,
        gpus=trainer.gpus,
        threads=config.cpu_threads,
        device=config.device,
        dtype=config.dtype,
        max_restarts=config.max_restarts,
    )
    say(f"{config.objective.type}: training")
    figures = fit_on_cluster(fit_worker, job, workers, name=config.objective.type, out=work)
    (run / FIGURES_FILE).write_text(json.dumps(figures, indent=1) + "\n")
    # Last: a folder of this name is complete, and so is what stands beside it.
    work.rename(run / "aligned")


def _measure(config: FitConfig, run: Path, inputs: FitInputs, bench: Workbench) -> None:
    codec = TextCodec(inputs.policy)
    prompts = read_fitting(inputs.evaluation, codec, config.rollout) if inputs.evaluation else []
    if prompts:
        with measured(run, "evaluate"):
            stages = (("base", inputs.policy, 0), ("aligned", run / "aligned", TRAINED))
            for name, folder, version in stages:
                assessor = Assessor(
                    run,
                    prompts,
                    rollouts=bench.generator_of(folder, version),
                    judge=inputs.judge,
                    decode=codec.decode,
                    every=0,
                )
                assessor.in_full(name, version)
    training = replace(
        summarise_training(run), figures=json.loads((run / FIGURES_FILE).read_text())
    )
    write_outcome(config, run, prompts, inputs.judge, training=training, cost_budget=None)


def _answers_stage(config: FitConfig, inputs: FitInputs, bench: Workbench) -> Stage:
    """The answers as arrays, scored where the objective or its mask asks for it."""
    objective = OBJECTIVES[config.objective.type]
    needs_scores = objective.needs_reference or config.ama is not None
    depends: dict[str, Any] = {
        "policy": identity(inputs.policy),
        "data": identity(inputs.train) if inputs.train else config.sandbox.seed,
        "objective": config.objective.model_dump(),
        "fdc": config.fdc.model_dump(mode="json"),
        "max_length": config.max_length,
        "seed": config.seed,
        "dtype": config.dtype,
        "evaluation": identity(inputs.evaluation) if inputs.evaluation else None,
        "scored": needs_scores,
        "scorers": [identity(f) for f in (inputs.reward, inputs.cost) if f] if needs_scores else [],
    }
    if isinstance(config.objective, ArsConfig):
        depends |= {"multiplier": config.multiplier, "rollout": config.rollout.model_dump()}

    def make(folder: Path) -> None:
        if isinstance(config.objective, ArsConfig):
            table = _sampled(config, inputs, bench, config.objective.copies)
        else:
            table = _labelled(config, inputs)
            if needs_scores:
                table = table.scored(partial(bench.score, inputs))
        table.save(folder)

    return Stage(name="answers", inputs=depends, make=make)


def _labelled(config: FitConfig, inputs: FitInputs) -> AnswerTable:
    """The answers of the data set, in the amounts that are asked for."""
    objective = OBJECTIVES[config.objective.type]
    try:
        columns = _world_columns(config) if inputs.train is None else _columns(config, inputs.train)
        answers = objective.view(columns, config.objective, config.seed)
    except DataError as error:
        raise DataError(f"{inputs.train or 'the built-in world'}: {error}") from None
    _require_apart(columns["prompt"], inputs, config)
    return encode_answers(
        load_tokenizer(inputs.policy),
        answers,
        answers_per_example=objective.answers_per_example,
        max_length=config.max_length,
    )


def _world_columns(config: FitConfig) -> Columns:
    rows = policy_pair_rows(
        build_world(config.sandbox.seed),
        config.fdc.amounts,
        mislabelled_fraction=config.fdc.mislabelled_fraction,
        seed=config.seed,
    )
    columns: Columns = Dataset.from_list(list(rows)).to_dict()
    return columns


def _columns(config: FitConfig, folder: Path) -> Columns:
    columns = load_columns(folder, ("prompt",)).to_dict()
    chosen = choose_amounts(
        categories_of(columns),
        config.fdc.amounts,
        when_short=config.fdc.when_short,
        seed=config.seed,
    )
    return {name: [values[row] for row in chosen] for name, values in columns.items()}


def _require_apart(texts: Sequence[str], inputs: FitInputs, config: FitConfig) -> None:
    """Evaluation prompts never train."""
    if inputs.evaluation is None:
        return
    held_out = read_fitting(inputs.evaluation, TextCodec(inputs.policy), config.rollout)
    learned = (
        Prompt(prompt_id=f"row {row}", text=text, token_ids=(), category=Category.GENERAL)
        for row, text in enumerate(texts)
    )
    check_disjoint(learned, held_out)


def _sampled(config: FitConfig, inputs: FitInputs, bench: Workbench, copies: int) -> AnswerTable:
    """Best and worst of the policy's own answers to each prompt."""
    source = inputs.prompts or inputs.train
    assert source is not None
    prompts = read_fitting(source, TextCodec(inputs.policy), config.rollout)
    chosen = choose_amounts(
        [prompt.category for prompt in prompts],
        config.fdc.amounts,
        when_short=config.fdc.when_short,
        seed=config.seed,
    )
    asked = tuple(prompts[row] for row in chosen)
    _require_apart([prompt.text for prompt in asked], inputs, config)
    batch = PromptBatch(iteration=0, prompts=asked, copies=copies)
    rollouts = bench.generator_of(inputs.policy, 0).generate(batch, 0)
    scored = bench.score(inputs, rollouts)
    return table_of_pairs(best_and_worst(scored, copies=copies, multiplier=config.multiplier))
