"""One row of any data set as a neutral record, and how its parts are read.

Functions that read a part raise DataError with column, value and rule; the place knows who asked.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from equilibrate.data.rows import shown, text_fault
from equilibrate.errors import DataError
from equilibrate.types import Category, Conversation, Message, Role, as_conversation

Row = Mapping[str, Any]


class Kind(StrEnum):
    PROMPT = "prompts"
    ANSWER = "answers"
    """A prompt and what is to be said to it."""
    LABELLED = "labelled answers"
    """A prompt and answers of which each is judged alone."""
    PAIR = "pairs"
    """A prompt and two answers that are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one row says, whatever its columns are called.

    Example: {"prompt": "p", "chosen": "a", "rejected": "b"} is a pair with messages (user: p),
    responses ("a", "b") and better 0.
    """

    kind: Kind
    messages: Conversation
    """The prompt: ends with a turn of the user."""
    responses: tuple[str, ...] = ()
    is_safe: tuple[bool | None, ...] = ()
    """Of each response; None where the data do not say."""
    is_good: bool | None = None
    """Of an answer that is judged alone: whether it is wanted (TRL's `label`)."""
    better: int | None = None
    """Number of the more helpful response."""
    safer: int | None = None
    preferred: int | None = None
    """Number of the response that the data prefer, all told; beats `data.prefer`."""
    category: Category | None = None
    label: str = ""
    """Class, hazard or verdict as the file names it."""
    models: tuple[str, ...] = ()
    """Who gave each response, where the format says so."""

    @property
    def prompt(self) -> str | Conversation:
        """Of one user turn its text."""
        is_text = len(self.messages) == 1 and self.messages[0].role == "user"
        return self.messages[0].content if is_text else self.messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How one kind of data set is laid out."""

    about: str
    needs: tuple[str, ...]
    """Columns; `a|b` is either."""
    read: Callable[[Row], Record]
    """Raises: DataError for a row that breaks a rule, OfNoUse for one that teaches nothing."""
    by_values: bool = False
    """Its columns alone do not tell it from others."""
    is_evaluation: bool = False
    """Made to measure models by: nothing of it should train."""


class OfNoUse(DataError):
    """A row that breaks no rule and of which nothing can be learned; the message is the reason."""


def has(row: Row, name: str) -> bool:
    """Whether a row says anything under a name: an empty cell says nothing."""
    return row.get(name) not in (None, "")


def first_of(row: Row, names: Sequence[str]) -> str:
    """The first of some names that a row has, else the first."""
    return next((name for name in names if name in row), names[0])


def text(row: Row, name: str, *, may_be_empty: bool = False) -> str:
    if name not in row:
        present = ", ".join(map(repr, list(row)[:8])) or "no keys"
        raise DataError(f"needs the key {name!r}; the row has {present}")
    return checked(row[name], name, may_be_empty=may_be_empty)


def checked(value: object, name: str, *, may_be_empty: bool = False) -> str:
    """A text. Raises: DataError for anything else."""
    fault = text_fault(value, may_be_empty=may_be_empty)
    if fault:
        raise DataError(f"{name} ({shown(value)}) {fault}")
    return str(value)


_FLAGS = {"true": True, "false": False, "1": True, "0": False}


def flag(row: Row, name: str, *, needed: bool = False) -> bool | None:
    """True or False in any spelling (a bool, 0 or 1, "True"); None where the row does not say."""
    if not needed and not has(row, name):
        return None
    value = row.get(name)
    found = _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None and isinstance(value, (bool, int, float)) and value in (0, 1):
        found = bool(value)
    if found is None:
        raise DataError(f"{name} ({shown(value)}) must be 0 or 1")
    return found


def number(row: Row, name: str) -> int | None:
    """0 or 1, which of two responses; None where the column is not."""
    found = flag(row, name)
    return None if found is None else int(found)


def label_of(row: Row, *names: str) -> str:
    """The first of some columns that holds text."""
    return next((row[name] for name in names if isinstance(row.get(name), str)), "")


_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}


def conversation(value: object, name: str) -> Conversation:
    """Turns of any spelling: role and content, or from and value; also as JSON in a text.

    An empty system turn is left out. Raises: DataError also for turns that do not alternate.
    """
    turns = parsed(value, name) if isinstance(value, str) else value
    if isinstance(turns, dict):
        turns = [turns]
    if not isinstance(turns, (list, tuple)) or not turns:
        raise DataError(f"{name} ({shown(value)}) must be a list of turns")
    messages = [_message(turn, f"{name}[{number}]") for number, turn in enumerate(turns)]
    return alternating([turn for turn in messages if turn.content or turn.role != "system"], name)


def alternating(messages: Sequence[Message], name: str) -> Conversation:
    """Raises: DataError if user and assistant do not take turns behind one system turn at most."""
    expected: Role = "user"
    for place, turn in enumerate(messages):
        if turn.role == "system" and place == 0:
            continue
        if turn.role != expected:
            raise DataError(
                f"{name} ({' '.join(message.role for message in messages)[:60]}) must be turns of "
                "user and assistant by turns, behind one of system at most"
            )
        expected = "assistant" if expected == "user" else "user"
    return tuple(messages)


def _message(turn: object, name: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{name} ({shown(turn)}) must be a turn with role and content")
    said = turn.get("role", turn.get("from"))
    role = _ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise DataError(f"{name} role ({shown(said)}) must be one of {', '.join(_ROLES)}")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = _joined(content, name)
    fits = role == "system" and content in (None, "")
    return Message(role=role, content="" if fits else checked(content, f"{name} content"))


def _joined(parts: list[Any], name: str) -> str:
    """Content in parts: text alone, which is all that these models read."""
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise DataError(f"{name} content ({shown(part)}) must be text")
    return "".join(part["text"] for part in parts)


_OPENER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def is_transcript(value: object) -> bool:
    """Whether a text is a dialogue of `Human:` and `Assistant:`."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "Assistant:" in value


def transcript(value: str, name: str, *, open_end: bool = False) -> Conversation:
    """A dialogue as Anthropic's HH-RLHF writes it, without white space around its turns.

    A `Human:` at the very end that says nothing is left out.
    Args: open_end: it ends with `Assistant:`, for an answer to follow.
    """
    checked(value, name)
    before, *parts = _OPENER.split(value.strip())
    turns = [(role, said.strip()) for role, said in zip(parts[0::2], parts[1::2], strict=True)]
    if before or not turns:
        raise DataError(f"{name} ({shown(value)}) must begin with Human:")
    if turns[-1] == ("Human", "") or (open_end and turns[-1] == ("Assistant", "")):
        turns.pop()
    messages = []
    for role, said in turns:
        if not said:
            raise DataError(f"{name} has a turn ({role}:) that must not be empty")
        messages.append(Message(role=_ROLES["human" if role == "Human" else "bot"], content=said))
    return alternating(messages, name)


def answered(turns: Conversation, name: str) -> tuple[Conversation, str]:
    """A prompt and its answer. Raises: DataError if the last turn is not the assistant's."""
    if not turns or turns[-1].role != "assistant":
        last = turns[-1].role if turns else "nothing"
        raise DataError(f"{name} ends with a turn of {last}; it must end with the assistant's")
    return turns[:-1], turns[-1].content


def asked(turns: Conversation, name: str) -> Conversation:
    """A prompt. Raises: DataError if the last turn is not the user's."""
    if not turns or turns[-1].role != "user":
        last = turns[-1].role if turns else "nothing"
        raise DataError(f"{name} ends with a turn of {last}; it must end with the user's")
    return turns


PROMPTS = ("prompt", "instruction", "question")
"""Names of a column that holds a prompt."""


def prompt_of(row: Row, name: str = "", *, may_be_empty: bool = False) -> Conversation:
    """A prompt that is text, a transcript that ends with `Assistant:`, or turns; behind what the
    column `system` says."""
    name = name or first_of(row, PROMPTS)
    value = row.get(name)
    if isinstance(value, (list, tuple)):
        turns = asked(conversation(value, name), name)
    elif is_transcript(value) and cast(str, value).rstrip().endswith("Assistant:"):
        turns = asked(transcript(cast(str, value), name, open_end=True), name)
    else:
        turns = as_conversation(text(row, name, may_be_empty=may_be_empty))
    return with_system(row, turns)


def with_system(row: Row, turns: Conversation) -> Conversation:
    if not has(row, "system") or (turns and turns[0].role == "system"):
        return turns
    return (Message(role="system", content=text(row, "system")), *turns)


def response_of(row: Row, name: str) -> tuple[Conversation, str]:
    """Turns before an answer, none if it stands alone, and the answer: text, a turn, or turns."""
    value = row.get(name)
    if isinstance(value, (dict, list, tuple)):
        turns = [value] if isinstance(value, dict) else list(value)
        if len(turns) == 1:
            only = _message(turns[0], name)
            if only.role != "assistant":
                raise DataError(f"{name} ({shown(value)}) must end with the assistant's turn")
            return (), only.content
        return answered(conversation(turns, name), name)
    return (), text(row, name)


def parsed(value: str, name: str) -> object:
    """JSON or a Python literal within a text."""
    if not value.lstrip()[:1] or value.lstrip()[0] not in "[{":
        raise DataError(f"{name} ({shown(value)}) must be a list or an object")
    for parse in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                # Python warns of the escapes in what may be no Python at all.
                warnings.simplefilter("ignore")
                return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise DataError(f"{name} ({shown(value)}) must be JSON")


def said(turns: Conversation) -> str:
    """A conversation as people read it; of one user turn its content."""
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def texts(row: Row, name: str) -> list[str]:
    value = parsed(row[name], name) if isinstance(row.get(name), str) else row.get(name)
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} ({shown(row.get(name))}) must be a list of texts")
    return [checked(part, f"{name}[{place}]") for place, part in enumerate(value)]


def labelled(row: Row, response: str, **labels: Any) -> Record:
    before, answer = response_of(row, response)
    return Record(
        kind=Kind.LABELLED,
        messages=before or prompt_of(row),
        responses=(answer,),
        **{"is_safe": (None,)} | labels,
    )


def named_by(row: Row, kind: Kind) -> dict[str, str]:
    """What a prompt is known by and counted under, as far as its row says it: `id` (a number or
    text), `cell`, `part`. Rows of answers may share the id of their prompt, so theirs is none.

    Raises: DataError for what is no text.
    """
    given = {name: row.get(name) for name in ("cell", "part", "id")}
    if kind is not Kind.PROMPT:
        del given["id"]
    elif isinstance(given["id"], int) and not isinstance(given["id"], bool):
        given["id"] = str(given["id"])
    return {
        name: checked(value, name, may_be_empty=name != "id")
        for name, value in given.items()
        if value is not None
    }


class Ids:
    """Ids of the prompts of one file after another: unique within a file, and what another file has
    too gets the number of its file before it."""

    def __init__(self) -> None:
        self.num_files = 0
        """That have been read to their end."""
        self._found: dict[str, tuple[int, str]] = {}

    def new(self, given: str, where: str) -> str:
        """The id as it counts over all files. Raises: DataError if its file has it already."""
        if given in self._found and self._found[given][0] != self.num_files:
            given = f"{self.num_files + 1}:{given}"
        if given in self._found:
            raise DataError(
                f"id ({shown(given)}) must be unique, but {self._found[given][1]} has it too; "
                "leave `id` out to have one made from the text"
            )
        self._found[given] = self.num_files, where
        return given
