"""What names a run, a stage and a checkpoint that can be resumed: said once, on the field.

A field without a mark changes the result: it is in every key, and a resumed run must keep it. A
mark goes into the annotation, and a field that is declared again must repeat it:

    timeout_seconds: Annotated[float, Mark.CARRIES_OUT] = Field(600.0, gt=0)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from equilibrate.config.sources import reads_text
from equilibrate.errors import ConfigError

Settings = TypeVar("Settings", bound=BaseModel)

GIVEN = "given"
"""What stands for a path in `result_settings`: its content is named beside them."""


class Mark(Enum):
    CARRIES_OUT = "carries out"
    """How a run is carried out, not what it computes: in no key, and free when a run is resumed."""
    MAY_CHANGE = "may change"
    """In every key, but free when a run is resumed: to prolong it, or to look at it more often."""
    INPUT = "input"
    """Path of an input, or several: their content counts and not their place."""


InputPath = Annotated[str, Mark.INPUT]


def result_settings(config: BaseModel) -> dict[str, Any]:
    """Every setting that changes the result, as a plain tree; `GIVEN` for the path of an input."""
    return result_tree(type(config), config.model_dump(mode="json"))


def training_settings(config: BaseModel) -> dict[str, Any]:
    """`result_settings` of what is trained: who judges it afterwards changes no weight."""
    return {name: value for name, value in result_settings(config).items() if name != "judge"}


def result_tree(kind: type[BaseModel], tree: Mapping[str, Any]) -> dict[str, Any]:
    """`result_settings` of a plain tree that settings of this class were written to."""
    return _pruned([kind], tree)


def fixed_on_resume(config: BaseModel) -> dict[str, Any]:
    """Settings that a resumed run must keep, by dotted key; `GIVEN` for the path of an input."""
    return {
        key: _named(value, mark)
        for key, mark, value in _leaves([type(config)], config.model_dump(mode="json"))
        if mark not in (Mark.CARRIES_OUT, Mark.MAY_CHANGE)
    }


def require_fixed(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    place: object,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Compare two `fixed_on_resume`.

    Args: defaults: of settings that may be newer than what was saved.
    Raises: ConfigError naming the first key that is not what it was.
    """
    for key in sorted({*saved, *now}):
        before = saved.get(key, (defaults or {}).get(key))
        if before != now.get(key) or key not in now:
            raise ConfigError(
                f"{key} ({now.get(key)!r}) must stay what it was when the run in {place} was "
                f"started ({before!r}); set it back, or choose another output folder"
            )


def input_paths(config: BaseModel) -> dict[str, Path | str]:
    """Paths, and sources of scores that are none, of the inputs that are given, by dotted key."""
    return input_tree(type(config), config.model_dump(mode="json"))


def input_tree(kind: type[BaseModel], tree: Mapping[str, Any]) -> dict[str, Path | str]:
    """`input_paths` of a plain tree that settings of this class were written to."""
    paths: dict[str, Path | str] = {}
    for key, mark, value in _leaves([kind], tree):
        if mark is Mark.INPUT and isinstance(value, list):
            for place, entry in enumerate(value):
                paths[f"{key}[{place}]"] = _where(entry.get("source") or Path(entry["file"]))
        elif mark is Mark.INPUT and value:
            paths[key] = _where(value)
    return paths


def _where(given: str | Path) -> Path | str:
    return Path(given) if isinstance(given, Path) or not reads_text(given) else given


def only(config: Settings, *paths: str) -> Settings:
    """A copy that has the settings at these dotted paths alone: what reads another one fails.

    So `result_settings(only(config, ...))` cannot leave out what its reader depends on.
    Raises: ValueError for a path that does not exist.
    """
    below: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        below.setdefault(name, []).append(rest)
    names = type(config).model_fields
    if unknown := below.keys() - names.keys():
        raise ValueError(f"{min(unknown)!r} is no setting of {type(config).__name__}")
    copy = config.model_copy()
    for name in names:
        if name not in below:
            del copy.__dict__[name]
        elif "" not in below[name]:
            copy.__dict__[name] = only(getattr(config, name), *below[name])
    return copy


def mark_of(field: FieldInfo) -> Mark | None:
    return next((entry for entry in field.metadata if isinstance(entry, Mark)), None)


def models_in(field: FieldInfo | None) -> list[type[BaseModel]]:
    """The classes of settings that a field may hold: none, one, or the members of a union."""
    found: list[type[BaseModel]] = []

    def visit(annotation: Any) -> None:
        if get_origin(annotation) is tuple:
            return  # its members have no keys
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        for inner in getattr(annotation, "__args__", ()):
            visit(inner)

    if field is not None:
        visit(field.annotation)
    return found


def _pruned(models: Sequence[type[BaseModel]], tree: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in tree.items():
        mark, inner = _look_up(models, name)
        if mark is Mark.CARRIES_OUT:
            continue
        nested = inner and isinstance(value, Mapping)
        kept[name] = _pruned(inner, value) if nested else _named(value, mark)
    return kept


def _leaves(
    models: Sequence[type[BaseModel]], tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Mark | None, Any]]:
    """Dotted key, mark and value of each setting; a list or a mixture is one value."""
    for name, value in tree.items():
        mark, inner = _look_up(models, name)
        if inner and isinstance(value, Mapping):
            yield from _leaves(inner, value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", mark, value


def _look_up(
    models: Sequence[type[BaseModel]], name: str
) -> tuple[Mark | None, list[type[BaseModel]]]:
    """Mark of a field, and the classes below it; members of a union agree on their marks."""
    fields = [model.model_fields[name] for model in models if name in model.model_fields]
    marks = [mark for field in fields if (mark := mark_of(field)) is not None]
    return marks[0] if marks else None, [inner for field in fields for inner in models_in(field)]


def _named(value: Any, mark: Mark | None) -> Any:
    if mark is not Mark.INPUT or not value:
        return value
    # Of several, what is said of each counts as well.
    if not isinstance(value, list):
        return GIVEN
    return [entry | {key: GIVEN for key in ("file", "source") if key in entry} for entry in value]
