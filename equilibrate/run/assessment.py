"""Measuring a policy during and after a run: sample, judge, tabulate, write down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from equilibrate.evaluation import (
    EvaluationTable,
    Judge,
    Verdict,
    compare,
    helpfulness_by,
    tabulate,
    win_rates,
)
from equilibrate.interfaces import Generator
from equilibrate.run.sinks import EVALUATIONS_FILE, JsonlFile, write_whole
from equilibrate.types import Prompt, PromptBatch

BASE = "base"
"""What training starts from; `base.json` holds its answers."""
TRACE_PROMPTS_PER_CELL = 64
"""Enough for a point of the Pareto plot (half-width 12 points at 50 %), cheap enough to repeat."""
SAMPLES_PER_CELL = 25
"""Answers of each cell that the report lets people read."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Every answer of one policy to the evaluation prompts, with its verdict."""

    prompts: tuple[Prompt, ...]
    responses: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def table(self) -> EvaluationTable:
        return tabulate(self.prompts, self.verdicts)


class Assessor:
    """Samples the evaluation prompts from one version of the policy and keeps what came out.

    Files in the run folder: `evaluations.jsonl` gets one row per measured iteration; `base.json`
    and `aligned.json` hold every answer to every prompt.
    """

    def __init__(
        self,
        run_folder: Path,
        prompts: Sequence[Prompt],
        *,
        rollouts: Generator,
        judge: Judge,
        decode: Decode,
        every: int,
        shared_base: Path | None = None,
    ) -> None:
        """
        Args: shared_base: file that holds the answers of the base for every run that starts from
            it, or will; its name stands for the policy, the prompts and how they are sampled.
        """
        self.prompts = tuple(prompts)
        self._folder = run_folder
        self._rollouts = rollouts
        self._judge = judge
        self._decode = decode
        self._every = every
        self._shared_base = shared_base

    def at_iteration(self, iteration: int) -> None:
        """The base policy in full at iteration 0, a point of the trace every so often."""
        if not self.prompts:
            return
        if iteration == 0 and not self.find_base():
            self.measure_base()
        if self._every and iteration % self._every == 0:
            trace = self._assess(_first_of_each_cell(self.prompts), policy_version=iteration)
            row = {"iteration": iteration, "table": trace.table.to_json()}
            trace_file = JsonlFile(self._folder / EVALUATIONS_FILE)
            trace_file.append(row)
            trace_file.close()

    def find_base(self) -> bool:
        """Whether another run has sampled the base; if so its answers are this run's too.

        They are judged anew: both tables of a run are by one judge, in one version of it.
        """
        if self._shared_base is None or not self._shared_base.is_file():
            return False
        found = read_assessment(self._shared_base, self.prompts)
        write_assessment(self._file(BASE), self._judged(self.prompts, list(found.responses)))
        return True

    def measure_base(self) -> None:
        """Measure version 0 in full, for the other runs as well."""
        assessment = self.in_full(BASE, policy_version=0)
        if self._shared_base is not None:
            write_assessment(self._shared_base, assessment)

    def in_full(
        self, name: str, policy_version: int, rollouts: Generator | None = None
    ) -> Assessment:
        """Measure on all prompts and write `<name>.json`.

        Args: rollouts: who samples, in place of the usual one.
        """
        assessment = self._assess(self.prompts, policy_version, rollouts)
        write_assessment(self._file(name), assessment)
        return assessment

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _assess(
        self, prompts: tuple[Prompt, ...], policy_version: int, rollouts: Generator | None = None
    ) -> Assessment:
        batch = PromptBatch(iteration=policy_version, prompts=prompts)
        answers = (rollouts or self._rollouts).generate(batch, policy_version)
        responses = [self._decode(r.token_ids[r.response_mask].tolist()) for r in answers]
        return self._judged(prompts, responses)

    def _judged(self, prompts: tuple[Prompt, ...], responses: Sequence[str]) -> Assessment:
        verdicts = self._judge.judge(prompts, responses)
        return Assessment(prompts=prompts, responses=tuple(responses), verdicts=tuple(verdicts))


def write_assessment(path: Path, assessment: Assessment) -> None:
    rows = [
        {
            "prompt_id": prompt.prompt_id,
            "text": prompt.text,
            "category": prompt.category.value,
            "cell": prompt.cell,
            "response": response,
            "verdict": asdict(verdict),
        }
        for prompt, response, verdict in zip(
            assessment.prompts, assessment.responses, assessment.verdicts, strict=True
        )
    ]
    write_whole(path, json.dumps(rows))


def read_assessment(path: Path, prompts: Sequence[Prompt]) -> Assessment:
    """The answers stored for exactly these prompts, in their order."""
    rows = {row["prompt_id"]: row for row in json.loads(path.read_text())}
    chosen = [rows[prompt.prompt_id] for prompt in prompts]
    return Assessment(
        prompts=tuple(prompts),
        responses=tuple(row["response"] for row in chosen),
        verdicts=tuple(Verdict(**row["verdict"]) for row in chosen),
    )


def difference(base: Assessment, aligned: Assessment) -> EvaluationTable:
    """Aligned minus base, paired by prompt."""
    return compare(base.prompts, base.verdicts, aligned.verdicts)


def win_rate(base: Assessment, aligned: Assessment, judge: Judge) -> dict[str, Any] | None:
    """`{judge, cells}` of `evaluation.win_rates`; None where the judge gives no helpfulness."""
    source = helpfulness_by(judge)
    if not source:
        return None
    cells = win_rates(base.prompts, base.verdicts, aligned.verdicts)
    return {"judge": source, "cells": {cell: rate.to_json() for cell, rate in cells.items()}}


def sample_rows(stages: Mapping[str, Assessment]) -> list[dict[str, Any]]:
    """The same prompts of each cell for every stage, for people to read."""
    return [
        {
            "stage": stage,
            "cell": prompt.cell or prompt.category.value,
            "prompt": prompt.text,
            "response": response,
            "verdict": asdict(verdict),
        }
        for stage, assessment in stages.items()
        for _, rows in groupby(
            zip(assessment.prompts, assessment.responses, assessment.verdicts, strict=True),
            key=lambda row: row[0].cell or row[0].category.value,
        )
        for prompt, response, verdict in list(rows)[:SAMPLES_PER_CELL]
    ]


def _first_of_each_cell(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    taken: dict[str, int] = {}
    chosen = []
    for prompt in prompts:
        cell = prompt.cell or prompt.category.value
        if taken.get(cell, 0) < TRACE_PROMPTS_PER_CELL:
            taken[cell] = taken.get(cell, 0) + 1
            chosen.append(prompt)
    return tuple(chosen)
