"""Reward and cost models as others save them, made into folders of ours: recognised by the name of
the head, checked by file headers, and their head's bias and normaliser folded into the sidecar.

Layouts are those of transformers and TRL, of OpenRLHF (openrlhf/models/model.py) and of safe-rlhf
(safe_rlhf/models/score_model, normalizer.py), whose beaver models are of 2023 and 2024.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from equilibrate.errors import DataError, ResourceError
from equilibrate.models.folders import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHT_FILE,
    read_config,
)
from equilibrate.models.pickled import (
    files_of_weights,
    read_tensors,
    shapes_of,
    tensors_of_file,
)
from equilibrate.models.sidecar import (
    SIDECAR_FILE,
    ScorerSidecar,
    own_head,
    write_sidecar,
)
from equilibrate.models.skeleton import fitted
from equilibrate.text.vocabulary import TOKENIZER_FILES
from equilibrate.types import ScorerKind

HEAD = "score.weight"
"""Ours, and what transformers calls it."""
_PAPERS = ("LICENSE*", "NOTICE*", "README.md", "*.jinja", "chat_template.json")

Entries = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, Tensor]
Numbers = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """What is done to a head's number: scale * number + shift."""

    scale: float = 1.0
    shift: float = 0.0

    def after(self, first: Affine) -> Affine:
        return Affine(scale=self.scale * first.scale, shift=self.scale * first.shift + self.shift)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one library saves a scorer: a trunk as transformers names it, and a linear head."""

    about: str
    heads: Callable[[Entries], tuple[str, ...]]
    """Names that the head may have, the likeliest first."""
    normalizer: Callable[[Entries, Numbers], tuple[float, float]]
    """Mean and deviation by what config.json says and by the mean, std and var of the folder."""
    switch: str = ""
    """Key of config.json that says whether they are in use."""
    kind: str = ""
    """Key of config.json that says `reward` or `cost`."""
    beside: tuple[str, ...] = ()
    """Tensors that belong to the normaliser."""
    settings: tuple[str, ...] = ()
    """Keys of config.json that must not stand beside a folded head."""


def _openrlhf_heads(entries: Entries) -> tuple[str, ...]:
    # Named in config.json since 2024; before, by an option of its own command line.
    named = entries.get("value_head_prefix")
    usual = ("value_head", *(["score"] if "normalize_reward" in entries else []))
    return (named, *usual) if isinstance(named, str) else usual


def _openrlhf(_: Entries, numbers: Numbers) -> tuple[float, float]:
    return numbers.get("mean", 0.0), numbers.get("std", 1.0)


def _safe_rlhf(entries: Entries, numbers: Numbers) -> tuple[float, float]:
    is_cost = entries.get("score_type") == "cost"
    # Of a cost the mean stays: its zero is the boundary.
    mean = 0.0 if is_cost else numbers.get("mean", 0.0)
    return mean, math.sqrt(max(numbers.get("var", 1.0), 0.0)) + 1e-8


LAYOUTS: Mapping[str, Layout] = {
    "safe_rlhf": Layout(
        about="safe-rlhf",
        heads=lambda _: ("score_head",),
        normalizer=_safe_rlhf,
        switch="do_normalize",
        kind="score_type",
        beside=("normalizer.mean", "normalizer.var", "normalizer.count"),
        settings=("bias", "mean", "momentum", "normalizer_type", "score_bias", "score_dim", "var"),
    ),
    "openrlhf": Layout(
        about="OpenRLHF",
        heads=_openrlhf_heads,
        normalizer=_openrlhf,
        switch="normalize_reward",
        beside=("mean", "std"),
        settings=("mean", "std", "value_head_prefix"),
    ),
    "transformers": Layout(
        about="transformers (TRL, ours)",
        heads=lambda _: ("score",),
        normalizer=_openrlhf,
    ),
}
"""By name, the first that fits is taken. A new one is a line here and its test."""

LABELS: Mapping[ScorerKind, frozenset[str]] = {
    "cost": frozenset({"unsafe", "harmful", "toxic", "not safe", "dangerous", "jailbreak"}),
    "reward": frozenset({"good", "helpful", "better", "chosen", "preferred", "positive"}),
}
"""Names of the one of two labels that a larger score means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignScorer:
    """A folder that was found to hold a scorer; of its weights nothing but the head is read."""

    folder: Path
    kind: ScorerKind
    layout: Layout
    head: str
    """Name of its module."""
    weight: Tensor
    """[1, H], the head of ours."""
    sidecar: ScorerSidecar
    """With what the head's bias and normaliser come to, and no calibration."""
    label: str
    """Of two labels the one that a larger score means; empty for a head of one."""
    architecture: str

    @property
    def about(self) -> str:
        of_two = f", two labels: {self.label!r} minus the other" if self.label else ""
        scale, bias = self.sidecar.scale, self.sidecar.bias
        return f"{self.layout.about}, head {self.head}{of_two}; score = {scale:g} * head + {bias:g}"


def read_foreign(
    folder: Path,
    kind: ScorerKind,
    *,
    label: str = "",
    negate: bool = False,
    normalize: bool | None = None,
) -> ForeignScorer:
    """Recognise a scorer by the headers of its files, and read its head.

    Args:
        label: of a head of two labels, the one that a larger score is to mean.
        negate: larger scores of the source mean the opposite of what they mean in a `kind` model.
        normalize: use the mean and deviation that the folder holds; None as its config.json says.
    Raises: DataError naming the folder and what it is not.
    """
    entries, shapes, own = read_config(folder), shapes_of(folder), own_head(folder, kind)
    layout, head = _layout(folder, entries, shapes)
    _require_kind(folder, layout, entries, kind, negate=negate)
    rows, width = shapes[f"{head}.weight"]
    index = _label_index(folder, entries, rows, kind, label)
    names = (f"{head}.weight", f"{head}.bias", *layout.beside)
    tensors = read_tensors(folder, [name for name in names if name in shapes])
    weight, shift = _difference(tensors[names[0]], tensors.get(names[1]), index)
    affine = _affine(folder, layout, entries, tensors, own, normalize).after(Affine(shift=shift))
    sign = -1.0 if negate else 1.0
    found = {name: shape for name, shape in shapes.items() if name not in names}
    model = fitted(folder, kind, found | {HEAD: (1, width)})
    return ForeignScorer(
        folder=folder,
        kind=kind,
        layout=layout,
        head=head,
        weight=weight,
        sidecar=ScorerSidecar(
            kind=kind,
            scale=sign * affine.scale,
            bias=sign * affine.shift,
            threshold=sign * own.threshold if own else 0.0,
        ),
        label="" if index is None else _labels(entries, rows)[index],
        architecture=type(model).__name__,
    )


def convert(found: ForeignScorer, out: Path) -> None:
    """Write the model, its tokenizer and its sidecar into the empty folder `out`, file by file.

    Raises: ResourceError if the disk is too small.
    """
    files = files_of_weights(found.folder)
    needed, free = sum(file.stat().st_size for file in files), shutil.disk_usage(out).free
    if free < needed:
        raise ResourceError(
            f"{out.parent}: {needed / 1e9:.1f} GB are to be written and {free / 1e9:.1f} GB are "
            "free; free space or give another folder"
        )
    weight_map: dict[str, str] = {}
    for number, file in enumerate(files, start=1):
        tensors = dict(_ours(found, file))
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        if tensors:
            save_file(tensors, out / (name if len(files) > 1 else WEIGHT_FILE), {"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _write_config(found, out)
    write_sidecar(out, found.sidecar)
    kept = {file for pattern in (*TOKENIZER_FILES, *_PAPERS) for file in found.folder.glob(pattern)}
    for file in kept:
        shutil.copyfile(file, out / file.name)
    for file in out.iterdir():
        file.chmod((out / SIDECAR_FILE).stat().st_mode)  # safetensors closes its files to the group


def _write_config(found: ForeignScorer, out: Path) -> None:
    layout = found.layout
    # Left in, somebody would standardise twice.
    dropped = {*layout.settings, layout.switch, layout.kind, "num_labels", "problem_type"}
    entries = {
        name: value for name, value in read_config(found.folder).items() if name not in dropped
    }
    entries |= {
        "architectures": [found.architecture],
        "id2label": {"0": found.kind},
        "label2id": {found.kind: 0},
    }
    (out / CONFIG_FILE).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _ours(found: ForeignScorer, file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one file by our names."""
    left_out = (f"{found.head}.bias", *found.layout.beside)
    for name, tensor in tensors_of_file(file).items():
        if name == f"{found.head}.weight":
            yield HEAD, found.weight.contiguous()
        elif name not in left_out:
            yield name, tensor


def _layout(folder: Path, entries: Entries, shapes: Shapes) -> tuple[Layout, str]:
    for layout in LAYOUTS.values():
        for head in layout.heads(entries):
            if f"{head}.weight" in shapes:
                _require_matrix(folder, f"{head}.weight", shapes)
                return layout, head
    names = {name.rpartition(".")[0]: shape for name, shape in shapes.items()}
    if encoder := next((n for n in names if re.match(r"classifi(er|cation_head)\b", n)), ""):
        raise DataError(
            f"{folder}: its head {encoder} is that of an encoder, whose states read later tokens "
            "too; a scorer of prefixes needs a causal model: sequence-classification models of "
            "Llama or Qwen, for example"
        )
    if odd := sorted(name for name, shape in names.items() if len(shape) == 2 and shape[0] <= 2):
        raise DataError(
            f"{folder}: its head has none of the names known (score, value_head, score_head); if "
            f'it is {odd[0]}, add "value_head_prefix": "{odd[0]}" to a copy of its {CONFIG_FILE}'
        )
    raise DataError(
        f"{folder}: holds no head that gives a score; a causal model has none: train one from it, "
        "fit objective.type=reward or cost"
    )


def _require_matrix(folder: Path, name: str, shapes: Shapes) -> None:
    shape = shapes[name]
    if len(shape) != 2 or shape[0] not in (1, 2):
        raise DataError(
            f"{folder}: its head {name} has the shape {shape}, and must have one label, or two "
            "that are opposites; which of more is meant is not said"
        )


def _require_kind(
    folder: Path, layout: Layout, entries: Entries, kind: ScorerKind, *, negate: bool
) -> None:
    said = entries.get(layout.kind)
    if said == "critic":
        raise DataError(f"{folder}: {layout.kind} (critic) is no scorer; give a reward model")
    if said is not None and said != kind and not negate:
        raise DataError(
            f"{folder / CONFIG_FILE}: {layout.kind} ({said!r}) must be {kind!r}; give --kind "
            f"{said}, or --negate if its opposite is to be the {kind}"
        )


def _labels(entries: Entries, rows: int) -> list[str]:
    names = entries.get("id2label")
    if isinstance(names, Mapping) and set(names) == set(map(str, range(rows))):
        return [str(names[str(row)]) for row in range(rows)]
    return [f"LABEL_{row}" for row in range(rows)]


def _label_index(
    folder: Path, entries: Entries, rows: int, kind: ScorerKind, label: str
) -> int | None:
    """Row of the label that a larger score means; None for a head of one."""
    names = _labels(entries, rows)
    if rows == 1:
        if label:
            raise DataError(f"{folder}: has one label, so --label ({label}) names nothing")
        return None
    wanted = {_key(label)} if label else LABELS[kind]
    rows_meant = [row for row, name in enumerate(names) if _key(name) in wanted]
    if set(names) == set(LABELS):
        raise DataError(
            f"{folder}: has a reward and a cost head, as objective.type=scorer trains them, and no "
            f"{SIDECAR_FILE}, which says which is which; copy it from there, it needs no adoption"
        )
    if len(rows_meant) != 1:
        meaning = "harmful" if kind == "cost" else "helpful"
        raise DataError(
            f"{folder}: has two labels, {' and '.join(names)}, and "
            + (f"--label ({label}) is neither" if label else f"which is the {meaning} one is open")
            + f"; give --label {names[1]} or --label {names[0]}, the {meaning} one"
        )
    return rows_meant[0]


def _key(label: str) -> str:
    return re.sub(r"[\W_]+", " ", label).strip().lower()


def _difference(weight: Tensor, bias: Tensor | None, index: int | None) -> tuple[Tensor, float]:
    """A head of one label [1, H] and its bias: of two labels one minus the other."""
    shift = torch.zeros(len(weight)) if bias is None else bias.double()
    if index is None:
        return weight, float(shift)
    # In float32: a difference of two narrow numbers has more digits than they have.
    wide = weight.float()
    return (wide[index] - wide[1 - index])[None], float(shift[index] - shift[1 - index])


def _affine(
    folder: Path,
    layout: Layout,
    entries: Entries,
    tensors: Tensors,
    own: ScorerSidecar | None,
    normalize: bool | None,
) -> Affine:
    """What follows the head: as a sidecar says, else the normaliser where it is in use."""
    if own is not None:
        if normalize is not None:
            raise DataError(
                f"{folder / SIDECAR_FILE}: says what follows the head already; leave --normalize "
                "out"
            )
        return Affine(scale=own.scale, shift=own.bias)
    is_used = entries.get(layout.switch) is True if normalize is None else normalize
    if not is_used:
        return Affine()
    # Of config.json, or saved with the weights: those count where both are there.
    known = {key: entries[key] for key in ("mean", "std", "var") if key in entries} | {
        name.rpartition(".")[2]: tensor for name, tensor in tensors.items()
    }
    numbers = {key: _number(folder, key, known[key]) for key in ("mean", "std", "var")
               if known.get(key) is not None}  # fmt: skip
    if not numbers:
        raise DataError(
            f"{folder}: holds no mean and deviation to normalise by; leave --normalize out"
        )
    mean, deviation = layout.normalizer(entries, numbers)
    if not deviation > 0:
        raise DataError(f"{folder}: the deviation of its normaliser ({deviation:g}) must be > 0")
    return Affine(scale=1 / deviation, shift=-mean / deviation)


def _number(folder: Path, name: str, value: Any) -> float:
    numbers = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    if len(numbers) != 1 or not math.isfinite(numbers[0]):
        raise DataError(f"{folder}: {name} of its normaliser ({value}) must be one finite number")
    return float(numbers[0])
