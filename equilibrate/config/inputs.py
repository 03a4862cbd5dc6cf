"""Files that a run reads, as people write them: a path, or several with what is said of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
)

from equilibrate.config.identity import Mark
from equilibrate.types import Category

MIN_SHARE, MAX_SHARE = 1e-6, 1e6
"""Of a file or a part: their quotients are numbers, and none of them is 0."""


class InputFile(BaseModel):
    """One file or folder, in any format that `python -m equilibrate data FILE` recognises."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    file: str = Field(min_length=1)
    name: str = ""
    """What its prompts are counted under in evaluation tables; by default their class."""
    category: Category | None = None
    """Class of its prompts where it names none itself."""
    share: float | None = Field(None, ge=MIN_SHARE, le=MAX_SHARE)
    """Of prompts for `train`: its weight within each class, against the other files."""

    @property
    def path(self) -> Path:
        return Path(self.file)


def _as_files(value: Any) -> Any:
    """`FILE`, `[FILE, {file: FILE, category: EHD}, {NAME: FILE}]`, or `{NAME: FILE, ...}`."""
    if isinstance(value, (str, Path)):
        return ({"file": str(value)},) if str(value) else ()
    if isinstance(value, Mapping):
        is_one = any(key in value for key in InputFile.model_fields)
        value = [value] if is_one else [{name: value[name]} for name in value]
    return tuple(map(_as_entry, value)) if isinstance(value, (list, tuple)) else value


def _as_entry(value: Any) -> Any:
    if isinstance(value, (str, Path)):
        return {"file": str(value)}
    if (
        isinstance(value, Mapping)
        and len(value) == 1
        and not set(value) & set(InputFile.model_fields)
    ):
        ((name, inner),) = value.items()
        return {"name": name, **(inner if isinstance(inner, Mapping) else {"file": inner})}
    return value


def _agree(files: tuple[InputFile, ...]) -> tuple[InputFile, ...]:
    shares = [entry.share for entry in files]
    if None in shares and any(shares):
        without = files[shares.index(None)].file
        raise ValueError(
            f"{without} has no share and another file has; give each file a share, or none"
        )
    if twice := named_twice(files):
        raise ValueError(f"{twice}; name each file once")
    return files


def named_twice(files: Sequence[InputFile]) -> str:
    """Says which file stands there twice, by one path or two; "" if none does."""
    first: dict[str, str] = {}
    for file in (entry.file for entry in files):
        place = os.path.realpath(file)
        if place in first:
            other = first[place]
            return f"{file} stands there twice" + (f", also as {other}" if other != file else "")
        first[place] = file
    return ""


def as_written(files: tuple[InputFile, ...]) -> str | list[dict[str, Any]]:
    """The shortest form that reads as the same; a path alone where nothing is said of it."""
    entries = [entry.model_dump(mode="json", exclude_defaults=True) for entry in files]
    if not entries:
        return ""
    return entries[0]["file"] if len(entries) == 1 and len(entries[0]) == 1 else entries


InputFiles = Annotated[
    tuple[InputFile, ...],
    BeforeValidator(_as_files),
    AfterValidator(_agree),
    PlainSerializer(as_written),
    Mark.INPUT,
]


class RewardTerm(BaseModel):
    """A reward beside `data.reward`, in whose units it counts `weight` times its score."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str = Field(min_length=1)
    """As `data.reward`: a folder, a function or an endpoint."""
    weight: float = Field(strict=True)

    @field_validator("weight")
    @classmethod
    def _counts(cls, weight: float) -> float:
        if not weight:
            raise ValueError("(0) leaves its reward out; give another number, or leave out both")
        return weight


def _as_terms(value: Any) -> Any:
    """`{SOURCE: WEIGHT, ...}`, or what that is written as."""
    if isinstance(value, Mapping):
        return tuple({"source": str(name), "weight": weight} for name, weight in value.items())
    if value is None or value in ("", "off", False):
        return ()
    if not isinstance(value, (list, tuple)):
        raise ValueError("must map sources to weights, for example {length.py:brief: 0.1}, or: off")
    return tuple(value)


MoreRewards = Annotated[tuple[RewardTerm, ...], BeforeValidator(_as_terms), Mark.INPUT]


def plain(path: Path) -> tuple[InputFile]:
    """A file of which nothing is said."""
    return (InputFile(file=str(path)),)
