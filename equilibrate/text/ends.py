"""The ids that end an answer: one set for sampling and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from equilibrate.errors import DataError

FILES = ("generation_config.json", "config.json")


def read_end_ids(folder: Path, tokenizer_eos: int | None) -> tuple[int, ...]:
    """All ids that the folder's generation config, config and tokenizer call the end, in order.

    Read from the files and not through transformers, which fills in the default of a model's class
    and can ask to run code that comes with it.

    Raises: DataError naming the files if none of them gives one.
    """
    found = [number for name in FILES for number in _eos_of(folder / name)]
    if tokenizer_eos is not None:
        found.append(tokenizer_eos)
    if not found:
        raise DataError(
            f"{folder}: an answer could not end: none of {', '.join(FILES)} and the tokenizer gives"
            " an end of sequence; set eos_token in tokenizer_config.json"
        )
    return tuple(dict.fromkeys(found))


def _eos_of(file: Path) -> list[int]:
    if not file.is_file():
        return []
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({error})") from None
    # A model of several kinds of input has the settings of its text apart.
    parts = (settings, settings.get("text_config") or {})
    given = (part.get("eos_token_id") for part in parts)
    value = next((ids for ids in given if ids is not None and ids != []), None)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(number, int) for number in ids):
        raise DataError(f"{file}: eos_token_id ({value!r}) must be a token id or a list of them")
    return ids
