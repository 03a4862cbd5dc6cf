"""Arms x seeds to the runs that have to be made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from equilibrate.config.files import RUN_KINDS, merge_settings
from equilibrate.config.identity import input_tree, result_tree
from equilibrate.config.study import Kind, StudyConfig
from equilibrate.errors import ConfigError
from equilibrate.run.stages import short_hash

START = "start"
Resolve = Callable[[Kind, Mapping[str, Any]], Mapping[str, Any]]
"""A plain tree of one kind to the checked one with every default written out, as plain JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One seed of one arm, as it was written."""

    arm: str
    kind: Kind
    seed: int
    tree: Mapping[str, Any]
    """base < common < the arm's own < seed; not checked yet."""
    start: str = ""
    """The arm whose policy it goes on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run, whose result several arms may share."""

    key: str
    kind: Kind
    seed: int
    arms: tuple[str, ...]
    """Arms that resolve to this run, in the order of the study."""
    config: Mapping[str, Any]
    """Resolved settings as plain JSON; `output` is whatever the study says, and is not the key's
    business."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What the inputs hold whose paths are given, by their key in the settings; `START` is the key
    of the run whose policy this one goes on from."""

    @property
    def start(self) -> str:
        return self.inputs.get(START, "")


def expand(study: StudyConfig, base: Mapping[Kind, Mapping[str, Any]]) -> list[RunSpec]:
    """All runs as they were written, seed by seed, so that early results cover all arms.

    Args: base: settings under every arm of a kind, from `read_base`.
    """
    return [
        RunSpec(
            arm=arm,
            kind=config.kind,
            seed=seed,
            tree=_lay(study, base, arm, seed),
            start=config.start,
        )
        for seed in study.seeds
        for arm, config in study.arms.items()
    ]


def plan_runs(
    specs: Sequence[RunSpec], resolve: Resolve, content_of: Callable[[Path | str], str] = str
) -> list[PlannedRun]:
    """The runs to make, in order of first appearance; equal settings are run once and shared.

    Args: content_of: what an input holds; by default its path stands for it.

    Raises: ConfigError naming the arm and what `resolve` says of its settings.
    """
    runs: dict[str, PlannedRun] = {}
    keys: dict[tuple[str, int], str] = {}
    for spec in specs:
        try:
            config = resolve(spec.kind, spec.tree)
        except ConfigError as error:
            raise ConfigError(f"arms.{spec.arm}: {error}") from None
        paths = input_tree(RUN_KINDS[spec.kind], config)
        inputs = {name: content_of(path) for name, path in paths.items()}
        if spec.start and inputs:
            raise ConfigError(
                f"arms.{spec.arm}: {min(inputs)} must be left out: the arm goes on from the policy "
                f"of {spec.start}, in the built-in world"
            )
        if spec.start:
            inputs[START] = keys[spec.start, spec.seed]
        key = keys[spec.arm, spec.seed] = run_key(spec.kind, config, inputs)
        if key in runs:
            runs[key] = replace(runs[key], arms=(*runs[key].arms, spec.arm))
        else:
            runs[key] = PlannedRun(
                key=key,
                kind=spec.kind,
                seed=spec.seed,
                arms=(spec.arm,),
                config=config,
                inputs=inputs,
            )
    return list(runs.values())


def run_key(kind: Kind, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> str:
    """12 hex digits of all that a run depends on: kind, settings that change its result (see
    `config.identity`), and what its inputs hold.

    So a study can be finished on a machine that gives its runs other resources, or keeps its data
    elsewhere.
    """
    depends = {"kind": kind, "config": result_tree(RUN_KINDS[kind], config)}
    return short_hash(depends | ({"inputs": dict(inputs)} if inputs else {}))


def _lay(
    study: StudyConfig, base: Mapping[Kind, Mapping[str, Any]], arm: str, seed: int
) -> dict[str, Any]:
    config = study.arms[arm]
    tree: dict[str, Any] = {}
    layers = (base.get(config.kind, {}), study.common.get(config.kind, {}), config.set)
    for layer in (*layers, {"seed": seed, "sandbox": {"seed": seed}}):
        # merge_settings works in place and keeps inner mappings of the update: without a copy one
        # arm would write its settings into `common` and so into all later arms.
        merge_settings(tree, copy.deepcopy(dict(layer)))
    return tree
