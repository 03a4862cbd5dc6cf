"""Scorers that are no model folder: they read conversations as text and score whole answers.

A function and an endpoint are told the same, a list of conversations as JSON would hold them:

    {"messages": [{"role": "user", "content": "..."}, ...], "response": "..."}
"""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from equilibrate.config.sources import SourceKind, kind_of, parts_of, shown
from equilibrate.errors import DataError, EquilibrateError, ResourceError
from equilibrate.fdc.asking import NUM_ATTEMPTS
from equilibrate.types import Rollout

Conversations = list[dict[str, Any]]
Score = Callable[[Conversations], Any]

PER_REQUEST = 32
"""Conversations that an endpoint is sent at once."""
REQUEST_SECONDS = 60.0
"""Deadline of one request, or less where that of the scoring leaves no room for its repetitions."""
BLAME_SECONDS = 5.0
"""How long the answer that a function fails on is looked for."""
LARGEST = float(np.finfo(np.float32).max)
"""Score that the learner's numbers can hold."""
IN_TIME = 0.9
"""Share of the scoring's deadline after which a source counts as hung: before its worker does, of
which nobody knows what it waits for."""


class TextScorer:
    """A function or endpoint, held to one finite score for each answer, in time."""

    def __init__(self, source: str, *, seconds: float) -> None:
        """Args: seconds: deadline of the whole scoring.
        Raises: DataError or ResourceError naming the source, if it cannot be used.
        """
        self._seconds = IN_TIME * seconds
        self._name = shown(source)
        self._ask = SOURCES[kind_of(source)](source, seconds)
        self._failed: DataError | None = None
        self._at_once = PER_REQUEST if kind_of(source) == "endpoint" else sys.maxsize

    def score(
        self,
        rollouts: Sequence[Rollout],
        decode: Callable[[list[int]], str],
        *,
        spent: float = 0.0,
    ) -> list[float]:
        """One score per rollout, in order.

        Args:
            decode: token ids of a response to its text.
            spent: seconds of the deadline that are gone.
        Raises: DataError naming the source, and the row where one is at fault; ResourceError if it
            does not answer in time.
        """
        self._failed = None
        asked = [_conversation(rollout, decode) for rollout in rollouts]
        scores: list[float] = []

        def ask_all() -> list[float]:
            for start in range(0, len(asked), self._at_once):
                part = slice(start, start + self._at_once)
                found = self._found(asked[part], rollouts[part])
                scores.extend(self._checked(found, rollouts[part]))
            return scores

        return self._in_time(ask_all, len(asked), max(1.0, self._seconds - spent))

    def _found(self, asked: Conversations, rollouts: Sequence[Rollout]) -> Any:
        try:
            return _listed(self._ask(asked))
        except EquilibrateError:
            raise
        except (Exception, SystemExit) as error:
            # Kept: where the search takes too long, this is what is told.
            self._failed = DataError(f"{self._name}: {_told(error)}, of {len(asked)} answers")
            raise DataError(
                f"{self._name}: {_told(error)}, {self._blamed(asked, rollouts)}"
            ) from error

    def _blamed(self, asked: Conversations, rollouts: Sequence[Rollout]) -> str:
        """An answer that a function fails on alone as well, looked for by halves."""
        until = time.monotonic() + BLAME_SECONDS
        rows = range(len(asked))
        while len(rows) > 1 and time.monotonic() < until:
            middle = len(rows) // 2
            halves = (rows[:middle], rows[middle:])
            at_fault = next((half for half in halves if self._fails(asked, half)), None)
            if at_fault is None:
                break
            rows = at_fault
        if len(rows) > 1:
            return f"of answers {rows[0]} to {rows[-1]} together"
        return f"of answer {rows[0]}, to prompt {rollouts[rows[0]].prompt_id!r}"

    def _fails(self, asked: Conversations, rows: range) -> bool:
        try:
            _listed(self._ask([asked[row] for row in rows]))
        except (Exception, SystemExit):
            return True
        return False

    def _checked(self, found: Any, rollouts: Sequence[Rollout]) -> list[float]:
        if not isinstance(found, list):
            raise DataError(
                f"{self._name}: must give a list of {len(rollouts)} numbers, got "
                f"{type(found).__name__}"
            )
        if len(found) != len(rollouts):
            raise DataError(
                f"{self._name}: gave {len(found)} scores for {len(rollouts)} answers; give one "
                "for each, in their order"
            )
        return [
            self._finite(value, row, rollout)
            for row, (value, rollout) in enumerate(zip(found, rollouts, strict=True))
        ]

    def _finite(self, value: Any, row: int, rollout: Rollout) -> float:
        try:
            score = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError):
            score = math.nan
        if not abs(score) <= LARGEST:
            raise DataError(
                f"{self._name}: the score ({value!r}) of answer {row}, to prompt "
                f"{rollout.prompt_id!r}, must be a finite number"
            )
        return score

    def _in_time(self, work: Callable[[], list[float]], count: int, seconds: float) -> list[float]:
        """In a thread of its own, because nothing can stop what a source does."""
        done: list[list[float]] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                done.append(work())
            except BaseException as error:
                failed.append(error)

        thread = Thread(target=run, name=self._name, daemon=True)
        thread.start()
        thread.join(seconds)
        if failed:
            raise failed[0]
        if not done:
            raise self._failed or ResourceError(
                f"{self._name}: gave no scores for {count} answers within {seconds:g} s; "
                "it hangs, or needs more time: raise phase_seconds.score"
            )
        return done[0]


def check_source(source: str) -> None:
    """What can be said of a source before it is asked. Raises: as `TextScorer`."""
    SOURCES[kind_of(source)](source, REQUEST_SECONDS)


def _listed(found: Any) -> Any:
    """What has an order as a list: it may be made only now, by the user's code."""
    is_many = hasattr(found, "__iter__") and not isinstance(found, Mapping | Set | str | bytes)
    return list(found) if is_many else found


def _conversation(rollout: Rollout, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    assert rollout.messages, "the pool that samples names the turns of every prompt"
    return {
        "messages": [{"role": turn.role, "content": turn.content} for turn in rollout.messages],
        "response": decode(rollout.token_ids[rollout.response_mask].tolist()),
    }


def _function(source: str, seconds: float) -> Score:
    place, name = parts_of(source)
    try:
        module = (
            _module_of(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except (Exception, SystemExit) as error:  # a script may end itself
        raise DataError(
            f"{source}: {place} cannot be imported: {_told(error)}{_of_sibling(place, error)}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        known = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise DataError(
            f"{source}: {place} has no function {name}; it has {', '.join(known) or 'none'}"
        )
    score: Score = found
    return score


def _of_sibling(place: str, error: BaseException) -> str:
    """What to do about a file that stands beside the imported one, where Python does not look."""
    if not isinstance(error, ModuleNotFoundError) or not place.endswith(".py"):
        return ""
    name = (error.name or "").partition(".")[0]
    siblings = (Path(place).parent / f"{name}.py", Path(place).parent / name / "__init__.py")
    if not name or not any(map(Path.exists, siblings)):
        return ""
    return (
        f"; {name} stands beside it, where the workers do not look: move what is needed into the "
        "file, or install both as a package and give package.module:function"
    )


def _module_of(file: Path) -> ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    # Two files of one name in different folders are two modules.
    place = hashlib.blake2b(str(file.resolve()).encode(), digest_size=8).hexdigest()
    spec = spec_from_file_location(f"equilibrate_source_{file.stem}_{place}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up
    spec.loader.exec_module(module)
    return module


def _endpoint(source: str, seconds: float) -> Score:
    """POST {"conversations": [...]}, which is answered by {"scores": [...]}."""
    if find_spec("openai") is None:
        raise ResourceError(
            f"{source}: the package `openai`, whose client asks endpoints, is not installed; "
            "pip install 'equilibrate[judge]'"
        )
    import openai

    name = shown(source)
    _require_address(source)
    of_others = ("OpenAI-Organization", "OpenAI-Project")
    client = openai.OpenAI(
        base_url=source,
        api_key="none",
        # What the environment holds for OpenAI is nobody else's business.
        default_headers={header: openai.Omit() for header in of_others},
        # A redirected POST would arrive as a GET without its conversations.
        http_client=openai.DefaultHttpxClient(follow_redirects=False),
        # Half of the time for one request and its repetitions.
        timeout=min(REQUEST_SECONDS, seconds / (2 * NUM_ATTEMPTS)),
        max_retries=NUM_ATTEMPTS - 1,
    )

    def ask(conversations: Conversations) -> Any:
        try:
            reply = client.post(source, cast_to=object, body={"conversations": conversations})
        except openai.OpenAIError as error:
            raise ResourceError(
                f"{name}: gave no scores, asked up to {NUM_ATTEMPTS} times "
                f"({type(error).__name__}: {error}); check the address and the server"
            ) from error
        except ValueError as error:
            raise DataError(f"{name}: must answer in JSON, and did not ({error})") from error
        if not isinstance(reply, Mapping) or "scores" not in reply:
            raise DataError(
                f'{name}: must answer with a JSON object {{"scores": [...]}}, got '
                f"{repr(reply)[:80]}"
            )
        return reply["scores"]

    return ask


def _require_address(source: str) -> None:
    try:
        address = urlsplit(source)
        is_whole = bool(address.hostname) and address.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or any(map(str.isspace, source)):
        raise DataError(
            f"{shown(source)}: must be an address with a host, and a port up to 65535 if any; "
            "try http://host:8000/score"
        )


def _told(error: BaseException) -> str:
    """What an error of a user's code says, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} ({error}) in {frames[-1].filename}:{frames[-1].lineno}"


SOURCES: Mapping[SourceKind, Callable[[str, float], Score]] = {
    "function": _function,
    "endpoint": _endpoint,
}
