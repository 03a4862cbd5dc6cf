"""What a score means: the small JSON file beside a reward or cost model's weights.

A model folder holds a head with one label and says nothing about signs, zero or reliability.
Without that a budget on the cost has no meaning, so the file is required to use a scorer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from equilibrate.errors import DataError
from equilibrate.types import ScorerKind

SIDECAR_FILE = "equilibrate_score.json"
LARGER_MEANS: Mapping[str, str] = {"reward": "more helpful", "cost": "more harmful"}
HEADS = "heads"
_NUMBERS = ("threshold", "bias", "scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSidecar:
    """Sign convention, zero and measured quality of a scorer; score = scale * head + bias."""

    kind: ScorerKind
    threshold: float = 0.0
    """Score of the boundary; for a cost model larger is unsafe."""
    bias: float = 0.0
    scale: float = 1.0
    pooling: Literal["last_token"] = "last_token"
    """Which position's score is the verdict on a response."""
    calibration: Mapping[str, float] = field(default_factory=dict)
    """Measured on held-out pairs, for example `ranking_accuracy`; what a budget is placed by."""
    larger_means: str = ""
    """Filled in from `kind`; a file that says otherwise is refused."""

    def __post_init__(self) -> None:
        if self.kind not in LARGER_MEANS:
            raise ValueError(f"kind ({self.kind!r}) must be 'reward' or 'cost'")
        if not self.larger_means:
            object.__setattr__(self, "larger_means", LARGER_MEANS[self.kind])
        if self.larger_means != LARGER_MEANS[self.kind]:
            raise ValueError(
                f"larger_means ({self.larger_means!r}) of a {self.kind} model must be "
                f"{LARGER_MEANS[self.kind]!r}; negate the scores with scale = -1"
            )
        if self.pooling != "last_token":
            raise ValueError(f"pooling ({self.pooling!r}) must be 'last_token'")
        for name in _NUMBERS:
            value = getattr(self, name)
            if not _is_finite_number(value):
                raise ValueError(f"{name} ({value!r}) must be a finite number")
        if not isinstance(self.calibration, Mapping):
            raise ValueError(f"calibration ({self.calibration!r}) must map names to numbers")
        for name, value in self.calibration.items():
            if not _is_finite_number(value):
                raise ValueError(f"calibration.{name} ({value!r}) must be a finite number")


def write_sidecar(folder: Path, *heads: ScorerSidecar) -> None:
    """Write `equilibrate_score.json` into the model folder: of one head, or of several in order."""
    found = [asdict(head) for head in heads]
    entries = found[0] if len(found) == 1 else {HEADS: found}
    (folder / SIDECAR_FILE).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def is_scorer(folder: str | Path) -> bool:
    """Whether a model folder says of itself that it is a reward or cost model."""
    return (Path(folder) / SIDECAR_FILE).is_file()


def read_sidecar(folder: Path, *, kind: ScorerKind) -> ScorerSidecar:
    """What the head of a kind means.

    Args:
        kind: what the caller is going to use the model as; a model of another kind is refused.
    Raises: DataError as `read_heads`.
    """
    return place_of(kind, read_heads(folder, kind=kind), folder)[1]


def num_heads(folder: Path) -> int:
    """One where a folder says nothing. Raises: DataError as `read_heads`."""
    return len(read_heads(folder)) if is_scorer(folder) else 1


def own_head(folder: Path, kind: ScorerKind) -> ScorerSidecar | None:
    """What a scorer of ours says of its only head; None of somebody else's.

    Raises: DataError as `read_heads`, or where it has several.
    """
    if not is_scorer(folder):
        return None
    if num_heads(folder) > 1:
        raise DataError(
            f"{folder}: holds a reward and a cost model in one, which `train` takes as it is: "
            "give it as data.reward and as data.cost"
        )
    return read_sidecar(folder, kind=kind)


def place_of(
    kind: ScorerKind, heads: Sequence[ScorerSidecar], folder: Path
) -> tuple[int, ScorerSidecar]:
    """Number of the head of a kind, and what it means. Raises: DataError where there is none."""
    for place, head in enumerate(heads):
        if head.kind == kind:
            return place, head
    raise DataError(
        f"{folder / SIDECAR_FILE}: kind ({heads[0].kind!r}) must be {kind!r}; give a {kind} model"
    )


def read_heads(folder: Path, *, kind: ScorerKind = "reward") -> tuple[ScorerSidecar, ...]:
    """What each head of the model means: one, or reward and cost of one model.

    Args: kind: what a hint names where there is no file.
    Raises: DataError naming the file and the key, the value and the rule it breaks.
    """
    path = folder / SIDECAR_FILE
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing; a scorer needs it to state what its numbers mean, at least "
            f'{{"kind": "{kind}"}}; `python -m equilibrate scorer` writes it'
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(entries, dict) or HEADS not in entries:
        return (_head(entries, path, ""),)
    if unknown := sorted(entries.keys() - {HEADS}):
        raise DataError(f"{path}: unknown key {unknown[0]!r} beside {HEADS}, which holds the rest")
    listed = entries[HEADS]
    if not isinstance(listed, list):
        raise DataError(f"{path}: {HEADS} must be a list, got {type(listed).__name__}")
    heads = [_head(head, path, f"{HEADS}[{place}].") for place, head in enumerate(listed)]
    if len({head.kind for head in heads}) != len(heads) or len(heads) != len(LARGER_MEANS):
        kinds = ", ".join(head.kind for head in heads)
        raise DataError(f"{path}: {HEADS} ({kinds}) must be one of each kind: reward, cost")
    return tuple(heads)


def _head(entries: Any, path: Path, prefix: str) -> ScorerSidecar:
    """Args: prefix: of its keys, in errors."""
    if not isinstance(entries, dict):
        at = f"{prefix.rstrip('.')} " if prefix else ""
        raise DataError(f"{path}: {at}must be one JSON object, got {type(entries).__name__}")
    known = [one.name for one in fields(ScorerSidecar)]
    unknown = sorted(set(entries) - set(known))
    if unknown:
        name = f"{prefix}{unknown[0]}"
        raise DataError(f"{path}: unknown key {name!r}; known are {', '.join(known)}")
    if "kind" not in entries:
        raise DataError(f"{path}: {prefix}kind is missing; it must be 'reward' or 'cost'")
    try:
        return ScorerSidecar(**entries)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {prefix}{error}") from None


def propose_budget(cost: Path, share: float) -> float:
    """Mean cost of answers of which a share is unsafe, if they cost what held-out ones do.

        d = (1 - share) * mean cost of safe answers + share * mean cost of unsafe ones

    Raises: DataError if the cost model's sidecar does not say those means, or says them in the
        wrong order.
    """
    means = read_sidecar(cost, kind="cost").calibration
    safe, unsafe = means.get("safe_mean"), means.get("unsafe_mean")
    if safe is None or unsafe is None:
        raise DataError(
            f"{cost / SIDECAR_FILE}: has no calibration (safe_mean, unsafe_mean), so no budget can "
            "be proposed; set steps.align.constraint.budget"
        )
    if safe >= unsafe:
        raise DataError(
            f"{cost / SIDECAR_FILE}: the mean cost of held-out safe answers ({safe:g}) must be "
            f"below that of unsafe ones ({unsafe:g}): this model cannot tell them apart; train it "
            "on more rows, or set steps.align.constraint.budget"
        )
    return round((1 - share) * safe + share * unsafe, 4)


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
