"""Files and folders that people bring, row by row with their places, whatever kind they are.

No file is held in memory as a whole, but for a JSON object of questions by topic, which is small. A
row that cannot be read comes as its DataError; a file of which the rest cannot be read is refused.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, cast

import datasets

from equilibrate.data.rows import shown
from equilibrate.errors import DataError

MAX_ROW_BYTES = 8 * 2**20
"""Of one row: more text than the context of any model takes. A longer JSON line or cell is read
without holding it."""
MAX_DOCUMENT_BYTES = 256 * 2**20
"""Of a JSON object that is read as a whole, and of one entry of a JSON list."""

Rows = Iterator[tuple[str, Any]]
"""Place (`file:line`, `file:row` or `folder:row`) and content of each row."""

_BETWEEN = re.compile(r"[\s,]*")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?::[\w.-]+)?")


def read_rows(path: str | Path) -> Rows:
    """The rows of a file, of a folder written by `Dataset.save_to_disk`, or of a folder of files.

    What a file is, its ending says (`READERS`, and `.gz` behind any of them); any other is read as
    JSON lines.

    Raises: DataError if the file or folder cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        yield from _folder_rows(path)
        return
    endings = [suffix.lower() for suffix in path.suffixes]
    is_packed = endings[-1:] == [".gz"]
    ending = "".join(endings[:-1][-1:] if is_packed else endings[-1:])
    try:
        yield from READERS.get(ending, _json_lines)(path, _unpacked if is_packed else _plain)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot be read ({reason}); give a file ({', '.join(READERS)}, each also "
            "with .gz) or a dataset folder"
        ) from None


def hub_rows(name: str) -> Rows:
    """Rows of a data set of the Hugging Face hub, `owner/name` or `owner/name:split`, as they come.

    Raises: DataError if it cannot be reached, or has several splits and none is named.
    """
    repository, _, split = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, split=split or None, streaming=True)
        if not split:
            loaded = _only_split(loaded, name, f"{name}:{next(iter(loaded), 'train')}")
        for number, row in enumerate(loaded):
            yield f"{name}:{number}", row
    except DataError:
        raise
    except Exception as error:
        # The hub's client, the network and the set itself fail in ways of their own.
        raise DataError(
            f"{name}: is no file or folder here, and of the hub it cannot be read "
            f"({type(error).__name__}: {shown(str(error))}); this machine may be offline: "
            "download the data set where there is a network, and give its folder"
        ) from None


def is_hub_name(name: str) -> bool:
    """Whether it is spelled `owner/name[:split]` and is no path here, nor a mistake in one: a
    mistyped file must not be asked for in public."""
    path = Path(name)
    is_file = any(ending in READERS for ending in path.suffixes) or path.parent.is_dir()
    return _HUB_NAME.fullmatch(name) is not None and not is_file


def splits_of(path: Path) -> list[Path]:
    """Of a folder of several splits the folder of each, else the path itself."""
    if not (path / "dataset_dict.json").is_file():
        return [path]
    named = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    return [path / name for name in named]


Opener = Callable[[Path], IO[bytes]]


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _unpacked(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb"))


def _json_lines(path: Path, opened: Opener) -> Rows:
    with opened(path) as file:
        for number, line in enumerate(_lines(file), start=1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if number == 1 and content[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{path}: is UTF-16 text; save it as UTF-8")
            if content.strip():
                yield f"{path}:{number}", _parse_line(content)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Each line, of a longer one the first MAX_ROW_BYTES and one more."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_ROW_BYTES)
        yield line


def _parse_line(line: bytes) -> object:
    if len(line) > MAX_ROW_BYTES:
        return _too_long(line[:40])
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return DataError(f"({shown(line[error.start : error.end])}) must be UTF-8 text")
    except (ValueError, RecursionError) as error:
        return DataError(f"({shown(line[:40].rstrip())}) must be one JSON object ({error})")


def _too_long(beginning: object) -> DataError:
    return DataError(
        f"({shown(beginning)}...) must have at most {MAX_ROW_BYTES >> 20} MiB; leave it out"
    )


def _json(path: Path, opened: Opener) -> Rows:
    """A list of rows, lines of them, an object with one list of them, or questions by topic."""
    with opened(path) as file:
        heads = [line for _, line in zip(range(2), _filled_lines(file), strict=False)]
    if not heads:
        return
    if heads[0].lstrip().startswith(b"["):
        yield from _json_list(path, opened)
    elif len(heads) == 2 and not isinstance(_parse_line(heads[0]), DataError):
        yield from _json_lines(path, opened)
    else:
        yield from _document_rows(path, _document(path, opened))


def _filled_lines(file: IO[bytes]) -> Iterator[bytes]:
    lines = (line.removeprefix(b"\xef\xbb\xbf") for line in _lines(file))
    return (line for line in lines if line.strip())


def _text(path: Path, opened: Opener) -> IO[str]:
    """Bytes that are no UTF-8 become half surrogate pairs, which a row is rejected for."""
    return io.TextIOWrapper(
        opened(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


def _json_list(path: Path, opened: Opener) -> Rows:
    decode = json.JSONDecoder().raw_decode
    with _text(path, opened) as file:
        buffer, start, number = file.read(2**20), 0, 0
        start = buffer.index("[") + 1
        while True:
            place = f"{path}:{number}"
            start = _BETWEEN.match(buffer, start).end()  # type: ignore[union-attr]
            if buffer.startswith("]", start):
                if (buffer[start + 1 :] + file.read(99)).strip():
                    raise DataError(f"{path}: must be one list; something stands behind its end")
                return
            try:
                entry, end = decode(buffer, start)
                rule = "the list must end with ]"
            except (ValueError, RecursionError) as error:
                end, rule = len(buffer), str(error)
            if end < len(buffer):
                yield (
                    place,
                    entry if end - start <= MAX_ROW_BYTES else _too_long(buffer[start:][:40]),
                )
                start, number = end, number + 1
                continue
            rest = buffer[start:]
            more = file.read(max(2**20, len(rest))) if len(rest) < MAX_DOCUMENT_BYTES else ""
            if not more:
                raise DataError(
                    f"{place}: ({shown(rest[:40])}) must be JSON ({rule}); nothing behind it can "
                    "be read: mend it, or write one row a line (.jsonl), where each stands alone"
                )
            buffer, start = rest + more, 0


def _document(path: Path, opened: Opener) -> object:
    with opened(path) as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{path}: one JSON object of more than {MAX_DOCUMENT_BYTES >> 20} MiB; write one row a "
            "line (.jsonl), which is read piece by piece"
        )
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: must be JSON ({error}); give a list of rows, or one row a line (.jsonl)"
        ) from None


def _document_rows(path: Path, document: object) -> Rows:
    if not isinstance(document, dict) or not all(
        isinstance(value, (dict, list)) for value in document.values()
    ):
        yield f"{path}:0", document
        return
    lists = [key for key, value in document.items() if _is_rows(value)]
    if len(lists) == 1:
        for number, row in enumerate(document[lists[0]]):
            yield f"{path}:{lists[0]}[{number}]", row
    elif lists:
        raise DataError(
            f"{path}: must hold one list of rows and has {len(lists)} ({', '.join(lists)}); write "
            "each to a file of its own"
        )
    elif len({len(value) for value in document.values()}) == 1 and "prompt" in document:
        raise DataError(f"{path}: holds columns; write one row a line (.jsonl)")
    else:
        yield from _questions(str(path), document, ())


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _questions(place: str, node: object, topics: tuple[str, ...]) -> Rows:
    """Leaves of an object of objects and lists, each with the keys that lead to it."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _questions(f"{place}:{key}", value, (*topics, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _questions(f"{place}[{number}]", value, topics)
    else:
        yield place, {"topic": " / ".join(topics), "question": node}


def _csv(path: Path, opened: Opener) -> Rows:
    """Cells are text; one may hold line breaks within its quotes."""
    csv.field_size_limit(MAX_ROW_BYTES)
    with _text(path, opened) as file:
        first = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=first.count) if path.suffix != ".tsv" else "\t"
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names = next(reader, [])
        twice = {name for name, after in pairwise(sorted(names)) if name == after and name}
        if twice:
            raise DataError(f"{path}: column {min(twice)!r} stands twice; rename one")
        line = reader.line_num + 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise DataError(
                        f"{path}:{line}: a quote must be closed, and the file ends before; nothing "
                        "behind it can be read"
                    ) from None
                yield f"{path}:{line}", DataError(f"must be a row of CSV ({error})")
            else:
                if cells:
                    yield f"{path}:{line}", _csv_row(names, cells)
            line = reader.line_num + 1


def _csv_row(names: list[str], cells: list[str]) -> object:
    if len(cells) != len(names):
        return DataError(
            f"({shown(cells[0])}) must have {len(names)} cells and has {len(cells)}; put cells "
            "that hold the separator or a line break in quotes"
        )
    return {name: cell for name, cell in zip(names, cells, strict=True) if name}


def _with_datasets(builder: str) -> Callable[[Path, Opener], Rows]:
    def read(path: Path, opened: Opener) -> Rows:
        with path.open("rb"):
            pass  # its own error says less of a file that is not there
        try:
            loaded = datasets.load_dataset(
                builder, data_files=str(path), split="train", streaming=True
            )
            for number, row in enumerate(loaded):
                yield f"{path}:{number}", row
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{path}: is no {builder} file ({shown(str(error))})") from None

    return read


READERS: dict[str, Callable[[Path, Opener], Rows]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _with_datasets("parquet"),
    ".arrow": _with_datasets("arrow"),
}
"""Kinds of files by their ending."""


def _folder_rows(path: Path) -> Rows:
    if not (path / "dataset_info.json").is_file() and not (path / "dataset_dict.json").is_file():
        yield from _files_in(path)
        return
    try:
        loaded = datasets.load_from_disk(str(path))
    except IndexError:
        # How `datasets` 5 meets a set that was saved without a row.
        return
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: is not a folder written by Dataset.save_to_disk ({error})"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        loaded = _only_split(loaded, str(path), str(path / next(iter(loaded), "")))
    for number, row in enumerate(loaded):
        yield f"{path}:{number}", row


def _files_in(folder: Path) -> Rows:
    """Of a folder of data files, as the hub hands them out."""
    try:
        builder = datasets.load_dataset_builder(str(folder))
        files = builder.config.data_files or {}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: is not a folder written by Dataset.save_to_disk, nor one of data files "
            f"({shown(str(error))})"
        ) from None
    splits = {split: [Path(file) for file in names] for split, names in files.items()}
    for file in _only_split(splits, str(folder), str(next(iter(splits.values()), [folder])[0])):
        yield from read_rows(file)


def _only_split(splits: Any, name: str, hint: str) -> Any:
    if len(splits) == 1 and not isinstance(splits, datasets.DatasetDict):
        return next(iter(splits.values()))
    raise DataError(
        f"{name}: must be one split, not a set of splits ({', '.join(map(str, splits))}); "
        f"try {hint}"
    )
