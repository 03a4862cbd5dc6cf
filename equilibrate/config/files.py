"""YAML files and dotted overrides in, a checked tree of settings out.

Every message names the key, the value and the rule, and for a misspelt key the nearest valid one.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from equilibrate.config.base import Config
from equilibrate.config.fit import FitConfig
from equilibrate.config.formats import UNNUMBERED
from equilibrate.config.identity import models_in
from equilibrate.config.sources import without_secrets
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError

Settings = TypeVar("Settings", bound=Config)

WHOLE = ("mixture", "amounts", "more_rewards")
_PYDANTIC_STEP = re.compile(r"\[key\]|literal\[.*\]|float")


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is written twice: plain YAML forgets the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in seen:
                first = seen[key.value]
                raise yaml.YAMLError(f"line {line}: {key.value} is already set in line {first}")
            seen[key.value] = line
        return super().construct_mapping(node, deep)


RUN_KINDS: Mapping[str, type[TrainConfig | FitConfig]] = {"train": TrainConfig, "fit": FitConfig}
"""Settings of each command that makes a run folder."""


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> TrainConfig:
    """Settings of a run of PPO: `load_settings` with `TrainConfig`."""
    return load_settings(TrainConfig, files, overrides)


def load_settings(
    kind: type[Settings], files: Sequence[str | Path], overrides: Sequence[str] = ()
) -> Settings:
    """Defaults < files from left to right < `key.path=value` overrides.

    Raises: ConfigError naming the file or key, the value and the rule.
    """
    tree: dict[str, Any] = {}
    for file in files:
        merge_settings(tree, read_yaml(Path(file)))
    merge_settings(tree, parse_options(overrides))
    return parse_settings(kind, tree)


def parse_config(tree: Mapping[str, Any]) -> TrainConfig:
    """Settings of a run of PPO: `parse_settings` with `TrainConfig`."""
    return parse_settings(TrainConfig, tree)


def parse_settings(kind: type[Settings], tree: Mapping[str, Any]) -> Settings:
    """Check a plain tree. Raises: ConfigError with one line per broken rule."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        told = "\n".join(_explain(kind, detail) for detail in error.errors())
        raise ConfigError(without_secrets(told)) from None


def resolve_settings(kind: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run of one of `RUN_KINDS`, defaults too, as plain JSON.

    Raises: as `parse_settings`.
    """
    settings: dict[str, Any] = json.loads(parse_settings(RUN_KINDS[kind], tree).model_dump_json())
    return settings


def load_run_config(run: Path) -> TrainConfig | FitConfig:
    """The settings that a run folder was made with.

    Raises: DataError if the folder holds no run, ConfigError if its settings were broken since
    or are of another format.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise DataError(f"{run}: is not the folder of a run (it has no config.yaml)")
    tree = read_yaml(file)
    tree.setdefault("settings_format", UNNUMBERED)
    try:
        if "objective" in tree:
            return parse_settings(FitConfig, tree)
        return parse_settings(TrainConfig, tree)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def dump_config(config: Config) -> str:
    """The resolved tree as YAML; `load_settings` of it gives an equal config."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = _UniqueKeyLoader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, not a {type(content).__name__}")
    return content


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """`key=value` settings as a plain tree. Raises: ConfigError for one of another form."""
    tree: dict[str, Any] = {}
    for option in options:
        merge_settings(tree, _parse_override(option))
    return tree


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key or not all(key.split(".")):
        raise ConfigError(
            f"override {override!r} must read key.path=value, for example ppo.clip_range=0.1"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value {text!r} is not YAML") from None
    *parents, last = key.split(".")
    tree: dict[str, Any] = {last: value}
    for part in reversed(parents):
        tree = {part: tree}
    return tree


def merge_settings(tree: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Lay `update` over `tree`, in place."""
    # A mixture is replaced whole: merging class by class would leave shares nobody wrote.
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict) and key not in WHOLE:
            merge_settings(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(kind_of_run: type[BaseModel], detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    written, siblings = _as_written(kind_of_run, location)
    path = ".".join(written) or "config"
    kind, value = detail["type"], detail["input"]
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = f"{path} is not a known key"
        return f"{known}; {nearest(written[-1], siblings) or f'valid keys: {_join(siblings)}'}"
    if kind == "union_tag_invalid":
        tags = _quoted(detail["ctx"]["expected_tags"])
        tag = detail["ctx"]["tag"]
        hint = nearest(tag, tags)
        return f"{path}.type ({tag!r}) must be one of {_join(tags)}" + (f"; {hint}" if hint else "")
    if kind in ("model_type", "model_attributes_type", "dict_type", "dict_attributes_type"):
        _, keys = _as_written(kind_of_run, [*location, ""])
        return f"{path} ({value!r}) must hold keys: {_join(keys)}"
    if kind in ("enum", "literal_error"):
        hint = nearest(str(value), _quoted(detail["ctx"]["expected"]))
        message += f"; {hint}" if hint else ""
    if kind == "value_error" and not location:
        return str(message)
    return f"{path} ({value!r}): {message}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """A question that names the nearest choice; "" if none is near."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def require_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raises: ConfigError with the nearest known name and all of them, unless `name` is known."""
    choices = sorted(known)
    if name in choices:
        return
    hint = nearest(name, choices)
    raise ConfigError(
        f"{what} ({name!r}) is unknown; {hint + ' ' if hint else ''}"
        f"known: {', '.join(choices) or 'none at all'}"
    )


def _quoted(text: str) -> list[str]:
    return re.findall("'([^']*)'", text)


def _join(words: Sequence[str]) -> str:
    return ", ".join(words)


def _as_written(root: type[BaseModel], location: Sequence[str]) -> tuple[list[str], list[str]]:
    """An error's location as the user spells it, and the valid keys beside its last part.

    Pydantic also names the member of a union (`kl.fixed.coef`) and its own steps (`[key]`).
    """
    models: list[type[BaseModel]] = [root]
    written: list[str] = []
    for index, part in enumerate(location):
        fields = sorted({name for model in models for name in model.model_fields})
        tagged = [model for model in models if _tag(model) == part]
        if tagged and part not in fields:
            models = tagged
        elif not _PYDANTIC_STEP.fullmatch(part):
            written.append(part)
            if part in fields and index < len(location) - 1:
                at = [m.model_fields[part] for m in models if part in m.model_fields]
                models = [child for field in at for child in models_in(field) or _members(field)]
    return written, sorted({name for model in models for name in model.model_fields})


def _members(field: FieldInfo) -> list[type[BaseModel]]:
    """Classes of the entries of a list."""
    arguments = get_args(field.annotation)
    return [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]


def _tag(model: type[BaseModel]) -> object:
    field = model.model_fields.get("type")
    return field.default if field is not None else None
