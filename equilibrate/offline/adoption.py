"""Somebody else's reward or cost model, or one of ours, becomes what `train` takes as `data.reward`
or `data.cost`: our layout, its numbers measured on labelled answers, zero where they say it is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from equilibrate import __version__
from equilibrate.config.files import merge_settings, parse_settings, require_known
from equilibrate.config.fit import FitConfig
from equilibrate.config.identity import only
from equilibrate.config.inputs import plain
from equilibrate.errors import DataError
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import check_folder, check_models, num_positions, read_object
from equilibrate.models.foreign import convert, read_foreign
from equilibrate.models.importing import fingerprint_of, texts_of
from equilibrate.models.loading import load_scorer
from equilibrate.models.pickled import files_of_weights
from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from equilibrate.offline.calibration import Scores, calibrate, place_zero
from equilibrate.offline.labelled import labelled_answers, naming, readable_columns
from equilibrate.offline.scorer_loss import ScorerLoss
from equilibrate.offline.table import AnswerTable, Rows
from equilibrate.ppo.batches import passes_of_rank
from equilibrate.text.vocabulary import has_tokenizer, other_tokens, require_tokenizers
from equilibrate.types import ScorerKind, is_unsafe

NOTE_FILE = "equilibrate_scorer.json"
"""In an adopted folder: what it was made of, so that the same command finds its work done."""
_SETTINGS = (
    "seed", "max_length", "device", "dtype", "cpu_threads", "text", "data.columns", "data.prefer",
    "data.max_rejected_fraction", "trainer.max_tokens_per_batch",
)  # fmt: skip
"""Those of `fit` that are read here."""
FEW = 100
"""Answers of each side below which the place of zero is uncertain: its error is then about 0.1 of
the scores' deviation."""
SHOWN: Mapping[ScorerKind, tuple[str, ...]] = {
    "reward": ("num_pairs", "ranking_accuracy", "better_mean", "worse_mean", "score_std"),
    "cost": (
        *("num_pairs", "num_answers", "auc", "ranking_accuracy"),
        *("sign_accuracy_before", "sign_accuracy", "unsafe_precision", "unsafe_recall"),
        *("safe_q05", "safe_q50", "safe_q95", "unsafe_q05", "unsafe_q50", "unsafe_q95"),
        "score_std",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a source is to be read where it does not say itself; as of `read_foreign`."""

    label: str = ""
    negate: bool = False
    normalize: bool | None = None


def adopt(
    source: Path,
    kind: ScorerKind,
    data: Path,
    out: Path,
    *,
    policy: Path | None = None,
    reading: Reading,
    settings: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Make the folder `out` whole, once of the same files, or not at all; only read the source.

    Of the prompts of a cost model half place the zero and half measure; of a reward model, whose
    zero means nothing, all measure.

    Args:
        data: labelled answers or pairs, in any format that `fit` reads.
        policy: whose tokens and template the answers are to be read in; None for the source's own.
        settings: of `fit`, for example `data.columns`, `max_length`, `text` or `device`.
    Raises: DataError naming what is wrong with the folder or the data, before any weight but the
        head is read; or that the model ranks answers no better than chance.
    """
    found = read_foreign(source, kind, **asdict(reading))
    start = _start(source, policy, say)
    config = _config(kind, data, start, settings, num_positions(source))
    note = _note(source, kind, data, policy, reading, config)
    if _is_there(out, source, note, say, policy):
        return
    table = _table(config, data, start, say)
    halves = _halves(kind, table, config.seed, data)
    say(f"{source}: {found.about}")
    whole = out.resolve()
    unfinished = whole.with_name(f".{whole.name}.adopting")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a command that was killed
    unfinished.mkdir(parents=True)
    try:
        convert(found, unfinished)
        _check(unfinished, kind, policy)
        say(f"{data}: scoring {len(table.sides)} answers")
        sidecar = _measured(found.sidecar, table, _scores(unfinished, config, table), *halves)
        write_sidecar(unfinished, sidecar)
        (unfinished / NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, whole)
    except DataError as error:
        raise DataError(str(error).replace(str(unfinished), str(source))) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for line in (*described(sidecar), f"folder: {out}; give it as data.{kind}"):
        say(line)


def described(sidecar: ScorerSidecar) -> list[str]:
    """What was measured, in a few lines."""
    figures = sidecar.calibration
    lines = [f"{name}: {figures[name]:.4g}" for name in SHOWN[sidecar.kind] if name in figures]
    if sidecar.kind == "cost":
        lines.append(
            f"zero: at {sidecar.threshold:.4g} of the source's scores, by "
            f"{figures['placed_by']:.0f} other answers"
        )
        if (few := figures["placed_by"]) < 2 * FEW:
            lines.append(f"warning: {few:.0f} answers place zero roughly; give {4 * FEW} or more")
    return lines


def _is_there(
    out: Path,
    source: Path,
    note: Mapping[str, Any],
    say: Callable[[str], None],
    policy: Path | None,
) -> bool:
    """Raises: DataError if `out` lies in the source or holds something else."""
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise DataError(f"{out}: lies in {source}, which is only read; give another --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / NOTE_FILE).is_file() or read_object(out / NOTE_FILE) != note:
        raise DataError(
            f"{out}: exists, is not empty and was not made by this command of these files; give "
            "another --out, or remove it first"
        )
    _check(out, note["kind"], policy)
    say(f"{out} is there already, made by the same command of the same files")
    return True


def _note(
    source: Path,
    kind: ScorerKind,
    data: Path,
    policy: Path | None,
    reading: Reading,
    config: FitConfig,
) -> dict[str, Any]:
    """What decides the numbers, by content."""
    if not data.exists():
        raise DataError(
            f"{data}: no such file; give --data answers labelled safe or unsafe, or pairs"
        )
    rows = [data] if data.is_file() else sorted(file for file in data.rglob("*") if file.is_file())
    return {
        "source": fingerprint_of([*files_of_weights(source), *texts_of(source)]),
        "kind": kind,
        "data": fingerprint_of(rows),
        "policy": None if policy is None else fingerprint_of(texts_of(policy)),
        "reading": asdict(reading),
        "settings": only(config, *_SETTINGS).model_dump(mode="json"),
        "versions": {
            "equilibrate": __version__,
            **{name: version(name) for name in ("torch", "transformers")},
        },
    }


def _check(folder: Path, kind: ScorerKind, policy: Path | None) -> None:
    """The door of `train`."""
    if policy is None:
        check_folder(folder, kind)
    else:
        check_models(policy, [(folder, kind)])


def _start(source: Path, policy: Path | None, say: Callable[[str], None]) -> Path:
    """The folder that answers are read with, as training reads them."""
    if policy is not None:
        require_tokenizers(policy, source)
        if not (difference := other_tokens(policy, source)):
            return policy
        say(f"{source}: reads answers in tokens of its own, not in those of {policy}: {difference}")
        return source
    if not has_tokenizer(source):
        raise DataError(f"{source}: holds no tokenizer; copy the one it was trained with beside it")
    return source


def _config(
    kind: ScorerKind,
    data: Path,
    start: Path,
    settings: Mapping[str, Any],
    positions: int | None,
) -> FitConfig:
    tree: dict[str, Any] = {}
    merge_settings(tree, settings)
    given = {"objective": {"type": kind}, "data": {"policy": str(start), "train": str(data)}}
    merge_settings(tree, given)
    config = parse_settings(FitConfig, tree)
    for name in _dotted(settings):
        require_known("setting of a scorer's measurement", name, _SETTINGS)
    length = min(config.max_length, positions or config.max_length)
    return config.model_copy(update={"max_length": length})


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The settings as `_SETTINGS` names them."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        is_known = name in _SETTINGS
        yield from (
            _dotted(value, f"{name}.") if isinstance(value, Mapping) and not is_known else (name,)
        )


def _table(config: FitConfig, data: Path, start: Path, say: Callable[[str], None]) -> AnswerTable:
    files = plain(data)
    columns = readable_columns(config, *files, None, say)
    with naming(files):
        return labelled_answers(config, columns, start)


def _halves(kind: ScorerKind, table: AnswerTable, seed: int, data: Path) -> tuple[Rows, Rows]:
    """Examples that place the zero, and those that measure; no prompt is in both.

    Raises: DataError where a half of a cost model's lacks safe or unsafe answers.
    """
    if kind == "reward":
        return np.arange(0), np.arange(len(table))
    halves = table.split(0.5, seed)
    for half in halves:
        is_safe = table.is_safe[table.rows_of(half)]
        if is_safe.all() or not is_safe.any():
            side = "unsafe" if is_safe.all() else "safe"
            raise DataError(
                f"{data}: half of its prompts ({len(is_safe)} answers) holds no {side} answer, and "
                "both halves need both to place and to measure the zero; give more labelled answers"
            )
    return halves


def _scores(folder: Path, config: FitConfig, table: AnswerTable) -> Scores:
    """[A] of the answers in their order, in the units of the folder's sidecar."""
    accelerator = Accelerator(config.device, config.dtype)
    accelerator.prepare(threads=config.cpu_threads)
    model = load_scorer(folder, "reward" if config.trains == "reward" else "cost", accelerator)
    loss = ScorerLoss(table, config, accelerator.torch_device)
    scores = np.empty(len(table.sides))
    for part in passes_of_rank(
        np.arange(len(table)),
        table.example_lengths,
        rank=0,
        world_size=1,
        max_tokens=config.trainer.max_tokens_per_batch,
    ):
        scores[table.rows_of(part)] = loss.end_scores(model, part)[:, 0].double().cpu().numpy()
    if not np.isfinite(scores).all():
        raise DataError(f"{folder}: gave a score that is not finite; look at its weights")
    return scores


def _measured(
    sidecar: ScorerSidecar, table: AnswerTable, scores: Scores, placing: Rows, measuring: Rows
) -> ScorerSidecar:
    """The sidecar with zero in its place, and the figures of the other half."""
    zero, placed = 0.0, {}
    num_pairs = int(table.are_pairs(measuring).sum())
    placing, measuring = table.rows_of(placing), table.rows_of(measuring)
    is_safe = table.is_safe
    if sidecar.kind == "cost":
        zero = place_zero(scores[placing], is_safe[placing])
        before = is_unsafe(scores[measuring]) != is_safe[measuring]
        placed = {
            "placed_by": float(len(placing)),
            "sign_accuracy_before": float(before.mean()),
        }
    figures = calibrate(
        sidecar.kind, scores[measuring] - zero, is_safe[measuring], num_pairs=num_pairs
    )
    if figures["ranking_accuracy"] <= 0.5 or zero != zero:
        higher = "unsafe" if sidecar.kind == "cost" else "better"
        raise DataError(
            f"the model ranks the {higher} answer higher in {figures['ranking_accuracy']:.0%} of "
            f"{num_pairs or len(measuring)} cases, no better than chance: it cannot tell them "
            "apart, or larger means the opposite there; then give --negate"
        )
    return replace(sidecar, threshold=sidecar.threshold + zero, calibration=figures | placed)
