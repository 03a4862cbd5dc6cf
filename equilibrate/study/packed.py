"""Results of many runs in one file: a JSON line a run, sorted by key.

Several processes write it at a time, each whole under a lock: whoever is killed, at any moment, the
file holds all results that were written before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from equilibrate.config.formats import carry
from equilibrate.errors import ConfigError, DataError
from equilibrate.run.disk import held
from equilibrate.run.sinks import write_whole
from equilibrate.study.grid import START, Resolve, run_key
from equilibrate.study.results import RunResult

_FIRST_FORM = {"commit": None, "machine": None, "settings_format": 1}
"""What a result in a file of its own, the form before this one, does not hold."""


def write_result(file: Path, result: RunResult) -> None:
    """Add the result to the file, or put it in the place of an earlier one with its key.

    Raises: DataError as `read_results`; the file is then as it was.
    """
    _add(file, {result.key: result})


def read_results(file: Path, resolve: Resolve) -> dict[str, RunResult]:
    """Every result in the file by the key that its settings have today.

    Settings of an older format are carried over (`config.formats`); others that were added since a
    run count at their defaults. A missing file has no results.

    Raises: DataError naming the line that is broken or has the key of another.
    """
    results: dict[str, RunResult] = {}
    keys: dict[str, str] = {}
    lines = enumerate(_read(file).values(), start=1)
    # Those that others go on from come first: their keys are part of the others' keys.
    for number, result in sorted(lines, key=lambda line: START in line[1].inputs):
        if START in result.inputs:
            start = result.inputs[START]
            result = replace(result, inputs={**result.inputs, START: keys.get(start, start)})
        try:
            key = _key_today(result, resolve)
        except DataError as error:
            raise DataError(f"{file}:{number}: {error}") from error
        keys[result.key] = key
        # One that was made under today's settings wins over an older one that means the same.
        if key not in results or result.key == key:
            results[key] = result
    return results


def take_in(file: Path, source: Path) -> int:
    """Add what `source` holds and `file` does not; the number of results added.

    Args: source: another such file, for example from another machine; or a folder with a JSON file
        for each run, as an older version kept them.

    Raises: DataError for a source that is neither, or where one run has different results in both.
    """
    if not source.exists():
        raise DataError(f"take-in ({source}) must be a file of results or a folder of an older one")
    theirs = _read_folder(source) if source.is_dir() else _read(source)
    ours = _read(file)
    for key in ours.keys() & theirs.keys():
        if ours[key].aligned != theirs[key].aligned:
            raise DataError(
                f"{source}: the result of run {key} differs from that in {file}, made on another "
                "machine or by other code; delete one of the two"
            )
    new = {key: result for key, result in theirs.items() if key not in ours}
    if new:
        _add(file, new)
    return len(new)


def _add(file: Path, results: Mapping[str, RunResult]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not the file itself: who waited for its lock would hold that of a file since replaced.
    with held(file.with_name(f".{file.name}.lock")):
        # Lines that were there stay as they are, byte for byte.
        lines = dict(zip(_read(file), _lines(file), strict=True))
        lines |= {key: json.dumps(r.to_json(), allow_nan=False) for key, r in results.items()}
        write_whole(file, "".join(f"{lines[key]}\n" for key in sorted(lines)))


def _lines(file: Path) -> list[str]:
    # Not splitlines(), for which a text may hold line breaks that JSON leaves as they are.
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return text.removesuffix("\n").split("\n") if text else []


def _read(file: Path) -> dict[str, RunResult]:
    """Results by the key they were made under, in the order of the file."""
    if file.is_dir():
        raise DataError(
            f"results ({file}) must be a file, and this is a folder, as an older version kept them;"
            f" write results: {file}.jsonl in the study and run it once with --take-in {file}"
        )
    results: dict[str, RunResult] = {}
    for number, line in enumerate(_lines(file), start=1):
        result = _parse(line, f"{file}:{number}", "delete the line")
        if result.key in results:
            raise DataError(f"{file}:{number}: key ({result.key}) is there twice; delete one line")
        results[result.key] = result
    return results


def _read_folder(folder: Path) -> dict[str, RunResult]:
    results = {}
    for path in sorted(folder.glob("*.json")):
        result = _parse(path.read_text(encoding="utf-8"), str(path), "delete it", _FIRST_FORM)
        results[result.key] = result
    return results


def _parse(
    text: str, where: str, remedy: str, beneath: Mapping[str, Any] | None = None
) -> RunResult:
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise DataError(f"result must be a mapping, not a {type(content).__name__}")
        return RunResult.from_json({**(beneath or {}), **content})
    except ValueError as error:
        raise DataError(f"{where}: {error}; {remedy}, and the study runs it again") from error


def _key_today(result: RunResult, resolve: Resolve) -> str:
    config = carry(result.kind, result.config, result.settings_format)
    try:
        return run_key(result.kind, resolve(result.kind, config), result.inputs)
    except ConfigError:
        # Settings that are refused today: no planned run can ask for this result.
        return result.key
