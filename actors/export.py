"""A plain model folder of any checkpoint of a run, with its card, while the run goes on or after.

Nothing of Ray is started: the weights are read from DeepSpeed's files, whatever the ZeRO stage and
the number of ranks that wrote them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from actors.engine import ADAPTER, checkpoint_weights
from actors.prepare import policy_of
from equilibrate.config.files import load_run_config
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError
from equilibrate.learning.average import AVERAGE_FILE
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import CONFIG_FILE, check_folder
from equilibrate.models.importing import GENERATION_FILE, SHARD_SIZE
from equilibrate.models.loading import load_policy
from equilibrate.models.lora import adapt, merged_weights, write_adapter
from equilibrate.models.skeleton import build_empty
from equilibrate.report.card import front_matter, made_of, render_card
from equilibrate.report.checkpoints import best_checkpoint
from equilibrate.report.inputs import RunRecord, read_run
from equilibrate.run.checkpoint import (
    MANIFEST,
    Checkpoint,
    DamagedError,
    checkpoint_folder,
    kept_iterations,
    newest_checkpoint,
    verify_checkpoint,
)
from equilibrate.run.contents import CARD_FILE, Contents
from equilibrate.run.disk import as_resource_error
from equilibrate.run.folder import ALIGNED, say, stages_of
from equilibrate.text.renderer import load_tokenizer


def export(run: Path, out: Path, which: str) -> int:
    """Write the policy of a checkpoint as a plain folder, whole or not at all.

    Args: which: `latest`, `best` (`best_checkpoint`) or the iteration of one.
    Returns: the exit code, 0.
    Raises: DataError for a run or checkpoint that is not there or damaged, or an `out` that holds
        something else; ResourceError if the disk refuses, or others could have written the files.
    """
    config = load_run_config(run)
    if not isinstance(config, TrainConfig):
        raise DataError(
            f"{run}: is a run of `fit`, which keeps no checkpoint once it is done: its model is "
            f"{run / ALIGNED}"
        )
    disable_progress_bar()
    record = read_run(run)
    checkpoint = _find(run, record, which)
    origin = _origin(run, checkpoint)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if out.is_dir() and front_matter(out).get("equilibrate") == origin:
            say(f"{out} holds iteration {checkpoint.iteration} of {run} already")
            return 0
        raise DataError(f"{out}: exists and is not empty; give a folder that does not exist yet")
    with as_resource_error(out):
        _write(config, run, record, checkpoint, out, origin)
    say(f"{out}: iteration {checkpoint.iteration} of {run}")
    return 0


def _find(run: Path, record: RunRecord, which: str) -> Checkpoint:
    root = run / "checkpoints"
    kept = kept_iterations(root)
    listed = ", ".join(map(str, kept))
    if not kept:
        raise DataError(f"{root}: holds no checkpoint; the model of a finished run is in {ALIGNED}")
    if which == "latest":
        newest = newest_checkpoint(root)
        assert newest is not None
        return newest
    if which == "best":
        best = best_checkpoint(record, kept)
        held = "nothing is bounded"
        if record.bounded is not None:
            metric, bound = record.bounded
            held = f"{metric} {best.bounded:.4g}, bound {bound:g}"
        say(f"best of {listed}: {best.iteration}, reward {best.reward:.4g}, {held}")
        which = str(best.iteration)
    if not which.isascii() or not which.isdecimal():
        raise ConfigError(
            f"--checkpoint ({which!r}) must be latest, best or the iteration of one of them: "
            f"{listed}"
        )
    if int(which) not in kept:
        raise DataError(
            f"{root}: has no checkpoint of iteration {which} (any more: keep_checkpoints says how "
            f"many stay); there are {listed}"
        )
    try:
        return verify_checkpoint(checkpoint_folder(root, int(which)))
    except DamagedError as error:
        raise DataError(f"{error}; there are {listed}") from None


def _origin(run: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = hashlib.sha256((checkpoint.folder / MANIFEST).read_bytes()).hexdigest()
    return {"run": run.resolve().name, "iteration": checkpoint.iteration, "manifest": manifest}


def _write(
    config: TrainConfig,
    run: Path,
    record: RunRecord,
    checkpoint: Checkpoint,
    out: Path,
    origin: Mapping[str, Any],
) -> None:
    source = _source(config, run, checkpoint)
    weights, parts = _weights(config, checkpoint, source)
    whole = out.resolve()
    partial = whole.with_name(f".{whole.name}.exporting")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir(parents=True)
    try:
        _write_model(source, weights, partial)
        if config.learner.adapter and parts:
            write_adapter(partial / ADAPTER, parts, config.learner.adapter, base=str(source))
        check_folder(partial, "policy")
        results = {"versions": dict(checkpoint.versions), **made_of(config.data.policy, run)}
        record = replace(record, results={**results, **record.results})
        card = render_card(record, checkpoint=checkpoint.iteration, origin=origin)
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
        os.replace(partial, whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _source(config: TrainConfig, run: Path, checkpoint: Checkpoint) -> Path:
    """The folder that has the model's config, tokenizer and template; the weights below an adapter
    as well.

    Raises: DataError if the run has not ended and what it started from is gone or another.
    """
    is_whole = config.learner.adapter is None or config.learner.average_decay > 0
    if is_whole and (run / ALIGNED / CONFIG_FILE).is_file():
        return run / ALIGNED
    stages = stages_of(run)
    policy = policy_of(config, stages)
    fixed = json.loads((checkpoint.folder / "driver.json").read_text())["fixed"]
    if fixed["data.policy"] != f"content {Contents(stages).of(policy)}":
        raise DataError(
            f"{policy}: is not what the run in {run} started from any more; bring that back, its "
            "config and tokenizer belong to the checkpoint"
        )
    return policy


def _weights(
    config: TrainConfig, checkpoint: Checkpoint, source: Path
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """What the run would export: the average of the weights where it keeps one.

    Returns: all weights, and those of an adapter by themselves.
    """
    learner = checkpoint.folder / "learner"
    if config.learner.average_decay:
        return load_file(learner / AVERAGE_FILE), {}
    trained = checkpoint_weights(learner / "policy")
    if config.learner.adapter is None:
        return trained, {}
    # As the run held it: frozen layers in its dtype.
    policy = load_policy(source, Accelerator("cpu", config.dtype))
    adapt(policy, config.learner.adapter, Accelerator("cpu", config.dtype), seed=config.seed)
    policy.model.load_state_dict(trained, strict=False)
    return dict(merged_weights(policy.model)), trained


def _write_model(source: Path, weights: Mapping[str, Tensor], out: Path) -> None:
    model = build_empty(source, "policy")
    # The average names a shared tensor once; `tie_weights` makes its other names.
    weights = {name: tensor.float() for name, tensor in weights.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    if lost := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise DataError(f"the checkpoint has no {lost[0]}, which the model of {source} needs")
    model.save_pretrained(out, max_shard_size=SHARD_SIZE)
    load_tokenizer(source).save_pretrained(out)
    if (source / GENERATION_FILE).is_file():
        shutil.copyfile(source / GENERATION_FILE, out / GENERATION_FILE)
    for file in out.iterdir():
        file.chmod((out / CONFIG_FILE).stat().st_mode)  # safetensors closes its files to the group
