"""What rewards and costs may be beside a model folder: what reads text."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from equilibrate.errors import DataError
from equilibrate.types import ScorerKind

SourceKind = Literal["folder", "function", "endpoint"]

_FUNCTION = re.compile(r"(?P<place>.+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")
# One slash: a `Path` joins two.
_ENDPOINT = re.compile(r"https?:/")


def kind_of(source: str | Path) -> SourceKind:
    """`http://...` is an endpoint, `package.module:name` and `FILE.py:name` are functions."""
    if _ENDPOINT.match(str(source)):
        return "endpoint"
    return "function" if _FUNCTION.fullmatch(str(source)) else "folder"


def reads_text(source: str | Path) -> bool:
    """Whether a scorer gives one score to a whole answer, and none to its tokens."""
    return bool(str(source)) and kind_of(source) != "folder"


def sources_of(data: Any) -> list[tuple[str, ScorerKind, str]]:
    """Everything that may score answers, as key in `data`, kind and source; "" where none is given.

    Args: data: the settings `data` of a run.
    """
    terms = getattr(data, "more_rewards", ())
    return [
        ("reward", "reward", data.reward),
        ("cost", "cost", data.cost),
        *(("more_rewards", "reward", term.source) for term in terms),
    ]


def parts_of(source: str | Path) -> tuple[str, str]:
    """File or module of a function, and its name in there."""
    found = _FUNCTION.fullmatch(str(source))
    if found is None:
        raise ValueError(f"{source} names no function")
    return found["place"], found["name"]


def file_of(source: str | Path) -> Path | None:
    """The file that holds a function, which need not be there; None where nobody can say.

    Raises: DataError where a package that its module is in cannot be imported.
    """
    if kind_of(source) != "function":
        return None
    place, _ = parts_of(source)
    if place.endswith(".py"):
        return Path(place)
    try:
        spec = find_spec(place)
    except (Exception, SystemExit) as error:  # of a package's own code
        raise DataError(
            f"{source}: its module cannot be found ({type(error).__name__}: {error})"
        ) from None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def name_of(source: str | Path) -> str:
    """What a source is called wherever its file lies."""
    if kind_of(source) == "function":
        place, name = parts_of(source)
        return name if place.endswith(".py") else f"{place}:{name}"
    return shown(source)


def shown(source: str | Path) -> str:
    """A source as it is printed: of an address nothing that may be a password."""
    if kind_of(source) != "endpoint":
        return str(source)
    bare = re.sub(r"//[^/?#]*@", "//", re.sub(r"^(https?):/+", r"\1://", str(source)))
    return re.split(r"[?#]", bare)[0]


def without_secrets(text: str) -> str:
    """A text whose addresses are as `shown` prints them."""
    return re.sub(r"https?:/+[^\s'\"\]})>,;]+", lambda found: shown(found[0]), text)
