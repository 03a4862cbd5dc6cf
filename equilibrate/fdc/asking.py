"""Questions to a language model: repeated until they can be read, kept on disk, priced."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from equilibrate.errors import DataError, ResourceError

Ask = Callable[[Sequence[dict[str, str]]], str]
"""Raises: ResourceError without an answer; DataError if this question is refused, or its reply cut
off, which would be the same another time."""
Result = TypeVar("Result")
Said = TypeVar("Said")

NUM_ATTEMPTS = 4
FIRST_WAIT_SECONDS = 2.0
"""Before the second attempt, then twice as long each time. The client itself repeats twice."""
_SILENT_ROWS = 20
"""Questions in a row without an answer after which the endpoint counts as gone."""
BYTES_PER_TOKEN = 4
_AGAIN = "That could not be read: {reason}. Reply with what was asked for and nothing else."
_QUOTED_BY_CODE = re.compile(
    # "<" begins the control tokens of most models; C1 and line separators begin lines; the rest
    # are halves of surrogate pairs, and what turns the direction of text.
    "[<\x7f-\x9f\u2028\u2029\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
NO_ANSWER = "the endpoint gave no answer"
"""How the reason begins why a question has no reply; `num_unanswered` knows it again."""


class Endpoint(Protocol):
    """`equilibrate.evaluation.served_model.ServedModel`, or a stand-in."""

    @property
    def model(self) -> str: ...

    def map(self, work: Callable[[Ask, str], Result], items: Iterable[str]) -> list[Result]: ...


def json_form(name: str, **properties: str) -> dict[str, Any]:
    """`response_format` of the chat-completions protocol: one flat object, every key required.

    Args: properties: key -> JSON type.
    """
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def quoted(text: object) -> str:
    """A text, or an object of texts, as JSON on one line: it can end neither its quotation nor, by
    a control token, its turn."""
    line = json.dumps(text, ensure_ascii=False)
    return _QUOTED_BY_CODE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def spoken(reply: str) -> str:
    """A reply without the thoughts before it. Some chat templates keep their beginning back.

    Raises: DataError if they do not end.
    """
    before, end, rest = reply.partition("</think>")
    is_begun = before.lstrip().startswith("<think>")
    if end and (is_begun or "<think>" not in before):
        return rest
    if is_begun:
        raise DataError("the reply must not end within its thoughts (<think>)")
    return reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What asking will take; tokens are guessed from bytes, four to one."""

    num_requests: int = 0
    num_cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            num_requests=self.num_requests + other.num_requests,
            num_cached=self.num_cached + other.num_cached,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )

    def price(self, per_million_input: float, per_million_output: float) -> float:
        """In the unit of the two prices."""
        total = self.input_tokens * per_million_input + self.output_tokens * per_million_output
        return total / 1e6

    def describe(self, price: tuple[float, float]) -> str:
        cost = f", price {self.price(*price):.2f}" if any(price) else ""
        return (
            f"about {self.input_tokens} tokens in and {self.output_tokens} out, without repeats"
            f"{cost}; {self.num_cached} answered already"
        )


class Replies:
    """Readable replies on disk, by model and question: a second run asks only what is missing.

    What an interruption cut off is asked again. Several threads may use it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        if file.is_file():
            content = file.read_bytes()
            for line in content.splitlines():
                try:
                    row = json.loads(line)
                    self._known[row["key"]] = str(row["reply"])
                except (ValueError, LookupError, TypeError):
                    continue
            if content and not content.endswith(b"\n"):
                with file.open("ab") as out:
                    out.write(b"\n")

    def get(self, model: str, question: str) -> str | None:
        return self._known.get(_key(model, question))

    def put(self, model: str, question: str, reply: str) -> None:
        key = _key(model, question)
        line = json.dumps({"key": key, "reply": reply}) + "\n"
        with self._lock:
            self._known[key] = reply
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as out:
                out.write(line)


def num_unanswered(reasons: Iterable[str]) -> int:
    """Of the reasons why there is no result, those that another run may cure by asking again."""
    return sum(reason.startswith(NO_ANSWER) for reason in reasons)


def _key(model: str, question: str) -> str:
    content = f"{model}\n{question}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class Asker(Generic[Said]):
    """One kind of question: asks an endpoint what its replies on disk do not hold.

    Args:
        endpoint: answers conversations.
        read: what a reply says; raises ValueError (a DataError is one) for an unreadable one, and
            the model is told why and asked again.
        reply_tokens: usual length of a reply, for the estimate.
        wait: seconds to nothing; a test passes its own.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        replies: Replies,
        read: Callable[[str], Said],
        *,
        reply_tokens: int,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._endpoint = endpoint
        self._replies = replies
        self._read_spoken = read
        self._reply_tokens = reply_tokens
        self._wait = wait
        self._lock = threading.Lock()
        self._num_silent = 0

    def _read(self, reply: str) -> Said:
        return self._read_spoken(spoken(reply))

    def known(self, question: str) -> Said | None:
        """What was said before; None if never asked, or if the reply cannot be read today."""
        reply = self._replies.get(self._endpoint.model, question)
        try:
            return None if reply is None else self._read(reply)
        except ValueError:
            return None

    def estimate(self, questions: Iterable[str]) -> Estimate:
        different = set(questions)
        missing = [question for question in different if self.known(question) is None]
        num_bytes = sum(len(question.encode("utf-8", "surrogatepass")) for question in missing)
        return Estimate(
            num_requests=len(missing),
            num_cached=len(different) - len(missing),
            input_tokens=math.ceil(num_bytes / BYTES_PER_TOKEN),
            output_tokens=self._reply_tokens * len(missing),
        )

    def ask(self, questions: Sequence[str]) -> dict[str, Said | DataError]:
        """What the model says to each question, or why it says nothing.

        Raises: ResourceError if the first question, or twenty in a row, get no answer. What was
            answered is kept.
        """
        missing = [q for q in dict.fromkeys(questions) if self.known(q) is None]
        # One alone: a wrong key or address is said at once, and not after thousands of attempts.
        faults = dict(self._endpoint.map(self._first, missing[:1]))
        faults |= dict(self._endpoint.map(self._one, missing[1:]))
        found: dict[str, Said | DataError] = {}
        for question in questions:
            said = self.known(question)
            found[question] = said if said is not None else faults[question] or DataError(NO_ANSWER)
        return found

    def _first(self, ask: Ask, question: str) -> tuple[str, DataError | None]:
        return question, self._until_readable(ask, question)

    def _one(self, ask: Ask, question: str) -> tuple[str, DataError | None]:
        try:
            fault = self._until_readable(ask, question)
        except ResourceError as error:
            with self._lock:
                self._num_silent += 1
                if self._num_silent >= _SILENT_ROWS:
                    raise
            return question, DataError(f"{NO_ANSWER} ({error}); run again to ask it")
        with self._lock:
            self._num_silent = 0
        return question, fault

    def _until_readable(self, ask: Ask, question: str) -> DataError | None:
        """None once the reply is there, else why it says nothing.

        Raises: ResourceError if no attempt was answered.
        """
        messages = [{"role": "user", "content": question}]
        fault: DataError | None = None
        for attempt in range(NUM_ATTEMPTS):
            try:
                reply = ask(messages)
            except DataError as error:
                return error
            except ResourceError:
                if attempt + 1 == NUM_ATTEMPTS:
                    raise
                self._wait(FIRST_WAIT_SECONDS * 2**attempt)
                continue
            try:
                self._read(reply)
                self._replies.put(self._endpoint.model, question, reply)
                return None
            except ValueError as error:
                fault = error if isinstance(error, DataError) else DataError(str(error))
            # At temperature 0 the same question would get the same reply.
            again = {"role": "user", "content": _AGAIN.format(reason=fault)}
            messages = [messages[0], {"role": "assistant", "content": reply}, again]
        return fault


def parse_object(reply: str) -> dict[str, Any]:
    """The JSON object in a reply, whatever stands around it.

    Raises: DataError if there is none.
    """
    try:
        found = json.loads(reply[reply.index("{") : reply.rindex("}") + 1], strict=False)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError("the reply must be one JSON object")
    return found
