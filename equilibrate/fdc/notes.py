"""A user's notes on risks, and which of them concern a prompt: in-process, in any language."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from equilibrate.data.readers import read_rows
from equilibrate.data.records import checked, has, text
from equilibrate.data.rows import RejectedRows, prompt_key, shown
from equilibrate.errors import DataError
from equilibrate.fdc.classifier import require_library

Notes = Mapping[str, str]
"""Id -> text."""

PLAIN_TEXT = (".txt", ".md")
"""Endings of files whose paragraphs are notes."""
_BREAK = re.compile(
    r"\n\s*\n|^[ \t]*(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$", re.MULTILINE
)
"""Between paragraphs: an empty line, or one that Markdown draws as a rule."""
_HEADINGS = re.compile(r"(?:\s*#{1,6}(?:[ \t].*)?)+|.*\n=+")
"""A paragraph of Markdown that only says what the next ones are about."""
FLOOR = 0.1
"""Cosine below which a note does not concern a prompt. Chosen on 13 invented notes and 27 invented
prompts in three languages: each right note is above it, and of 14 prompts without one, 1 has a
note all the same."""
_BLOCK = 256
"""Prompts whose cosines are held at once."""

# Thai, Lao, Burmese, Khmer, kana, Chinese and Hangul: words of a few characters, mostly without
# spaces between them.
_DENSE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]"
)
_SIZES = {False: (4, 5), True: (1, 2)}
"""Characters in a piece of a word, and of one in such a script."""


def read_notes(file: Path) -> tuple[Notes, int]:
    """The notes of a file, and how many were copies of an earlier one.

    Of plain text each paragraph is a note, with its number as id, headings and rules of Markdown
    aside; of any other file each row, by `text` and `id` (a row without one has its number).

    Raises: DataError naming the rows that hold no text, or an id that names two notes; or if the
        file cannot be read, or has no note.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    rejected = RejectedRows(file)
    num_rows = 0
    is_plain = file.suffix.lower() in PLAIN_TEXT
    for num_rows, (where, row) in enumerate(_paragraphs(file) if is_plain else read_rows(file), 1):
        try:
            if isinstance(row, DataError):
                raise row
            if not isinstance(row, dict):
                raise DataError(f"({shown(row)}) must be an object with `text`")
            name, note = _note(row, str(num_rows))
            if (key := prompt_key(note)) in seen:
                continue
            if name in found:
                what = "id" if has(row, "id") else "its number"
                raise DataError(
                    f"{what} ({shown(name)}) names an earlier note with another text; give each "
                    "note an id of its own"
                )
        except DataError as error:
            rejected.add(where, str(error))
            continue
        seen.add(key)
        found[name] = note
    rejected.settle(num_rows)
    if not found:
        raise DataError(
            f"{file} must hold notes: rows with `text` (and `id`), or paragraphs in a file that "
            f"ends in {' or '.join(PLAIN_TEXT)}"
        )
    return found, num_rows - len(found)


def _note(row: Mapping[str, Any], number: str) -> tuple[str, str]:
    name = checked(str(row["id"]), "id") if has(row, "id") else number
    return name, text(row, "text").strip()


def _paragraphs(file: Path) -> Iterator[tuple[str, object]]:
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file}: must be UTF-8 text") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    parts = (part.strip() for part in _BREAK.split(content))
    notes = (part for part in parts if part and not _HEADINGS.fullmatch(part))
    for number, part in enumerate(notes, 1):
        yield f"{file}: paragraph {number}", {"text": part}


class Retriever:
    """The nearest notes of a prompt, by TF-IDF of the pieces of their words.

    Pieces are hashed and not looked up among those of the notes: a prompt whose words stand in none
    of them would else be measured by its few common ones, and be near to all.

    Raises: ResourceError without scikit-learn.
    """

    def __init__(self, notes: Notes) -> None:
        require_library("finds the notes of a prompt")
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        self._names = list(notes)
        self._pieces = HashingVectorizer(
            analyzer=_pieces, norm=None, alternate_sign=False, n_features=2**20
        )
        self._weights = TfidfTransformer(sublinear_tf=True)
        self._notes = self._weights.fit_transform(self._pieces.transform(notes.values()))

    def find(self, texts: Sequence[str], num_notes: int) -> Iterator[list[str]]:
        """Ids of at most `num_notes` notes for each text, the nearest first; none below FLOOR."""
        waiting = iter(texts)
        while block := list(islice(waiting, _BLOCK)):
            vectors = self._weights.transform(self._pieces.transform(block))
            cosines = (vectors @ self._notes.T).toarray()
            for row in cosines:
                # Of equal ones the first.
                order = np.argsort(-row, kind="stable")[:num_notes]
                yield [self._names[place] for place in order if row[place] >= FLOOR]


def _pieces(content: str) -> list[str]:
    found: list[str] = []
    for word in re.findall(r"\w+", content.casefold()):
        is_dense = _DENSE.search(word) is not None
        if len(word) == 1 and not is_dense:
            continue
        whole = word if is_dense else f" {word} "
        low, high = _SIZES[is_dense]
        for size in range(low, high + 1):
            found += [whole[at : at + size] for at in range(max(1, len(whole) - size + 1))]
    return found
