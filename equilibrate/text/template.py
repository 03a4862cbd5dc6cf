"""A chat template taken apart: which ids and texts it puts around what people say.

The template is rendered once for each order of roles, with a mark in place of every content. So no
content can pass for a part of the template, and a data set costs one rendering and not one a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from jinja2 import TemplateError

from equilibrate.errors import DataError
from equilibrate.text.plain import Start
from equilibrate.types import Conversation

# Survives only a template that hands contents on as they are: no change of case, no escapes, no
# splitting into lines. The outer characters are blank, so that a template that trims takes them.
_EDGE = "\u2003"
_MARK = "Turn{}:\"<&>'\\\n.Ax;"
_MARKS = re.compile(
    rf"({_EDGE}?)" + r"(\d+)".join(map(re.escape, _MARK.split("{}"))) + rf"({_EDGE}?)"
)
_BLANK = re.compile(r"\s*")

Roles = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the content of a message goes."""

    message: int
    trims_left: bool
    trims_right: bool

    def fill(self, content: str) -> str:
        content = content.lstrip() if self.trims_left else content
        return content.rstrip() if self.trims_right else content


@dataclass(frozen=True, slots=True)
class Control:
    token_id: int
    is_said: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Text between two control tokens, tokenized together."""

    parts: tuple[str | Slot, ...]
    start: Start
    is_said: bool
    """Whether the assistant said it."""

    def fill(self, contents: Sequence[str]) -> tuple[Start, str]:
        texts = [p if isinstance(p, str) else p.fill(contents[p.message]) for p in self.parts]
        return self.start, "".join(texts)


Form = tuple[Control | Run, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyForm:
    """How the template writes the answer that follows a prompt."""

    before: str
    """White space between the prompt and the answer, which is part of what the model says."""
    after: str
    """White space between the answer and its end."""
    slot: Slot
    end_id: int


class Markers:
    """Finds control tokens in the text of a template."""

    def __init__(self, control: Mapping[str, int], swallowing: Mapping[str, tuple[bool, bool]]):
        """Args: swallowing: tokens that take the white space to their left, to their right."""
        self._ids = control
        longest_first = sorted(control, key=len, reverse=True)
        self._pattern = re.compile(
            "|".join(
                rf"{_space(swallowing, text, 0)}({re.escape(text)}){_space(swallowing, text, 1)}"
                for text in longest_first
            )
            or r"(?!)"
        )

    def split(self, text: str) -> list[str | int]:
        """Text and ids of control tokens, in order."""
        found: list[str | int] = []
        end = 0
        for match in self._pattern.finditer(text):
            found += [text[end : match.start()], self._id_of(match)]
            end = match.end()
        return [part for part in [*found, text[end:]] if part != ""]

    def at(self, text: str, position: int) -> tuple[int, int] | None:
        """Id of the control token that stands at a position, and where it ends."""
        match = self._pattern.match(text, position)
        return None if match is None else (self._id_of(match), match.end())

    def _id_of(self, match: re.Match[str]) -> int:
        assert match.lastindex is not None
        return self._ids[match[match.lastindex]]


def _space(swallowing: Mapping[str, tuple[bool, bool]], text: str, side: int) -> str:
    return r"\s*" if swallowing.get(text, (False, False))[side] else ""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The template of one model folder."""

    render: Callable[[list[dict[str, str]], bool], str]
    """Messages, and whether the beginning of an answer follows them, to text."""
    markers: Markers
    end_ids: Collection[int]
    eos_id: int
    """What ends an answer where the template does not."""
    opening: tuple[int, ...]
    """Ids before everything that the template itself does not write."""
    name: str
    """Of the folder, for messages."""

    @cached_property
    def _forms(self) -> dict[Roles, Form]:
        return {}

    @cached_property
    def _replies(self) -> dict[Roles, ReplyForm]:
        return {}

    def prompt(self, roles: Roles) -> Form:
        """Up to where the next answer begins.

        Raises: DataError if the template refuses these roles or changes what they say.
        """
        if roles not in self._forms:
            rendered = self._rendered(roles, is_prompt=True)
            self._require_all(rendered, roles)
            self._forms[roles] = self._form(rendered, roles)
        return self._forms[roles]

    def reply(self, roles: Roles) -> ReplyForm:
        """Of the answer to a prompt of these roles."""
        if roles not in self._replies:
            self._replies[roles] = self._reply(roles)
        return self._replies[roles]

    def _reply(self, roles: Roles) -> ReplyForm:
        untouched = Slot(len(roles), False, False)
        form = ReplyForm(before="", after="", slot=untouched, end_id=self.eos_id)
        try:
            whole = self._rendered((*roles, "assistant"), is_prompt=False)
        except DataError:
            return form  # a template of prompts alone
        slots = [match for match in _MARKS.finditer(whole) if int(match[2]) == len(roles)]
        if len(slots) != 1:
            return form
        end_id, end, _ = self._end_of_turn(whole, slots[0].end())
        begin = self._begin_of_turn(whole, slots[0].start(), roles)
        return ReplyForm(
            before=whole[begin : slots[0].start()],
            after=whole[slots[0].end() : end],
            slot=_slot(slots[0]),
            end_id=self.eos_id if end_id is None else end_id,
        )

    def _begin_of_turn(self, rendered: str, slot: int, roles: Roles) -> int:
        """Where the answer to a prompt of these roles begins: after the prompt, if only white space
        is between; the model says that as well."""
        prompt = self._rendered(roles, is_prompt=True)
        is_after = rendered.startswith(prompt) and not rendered[len(prompt) : slot].strip()
        return len(prompt) if is_after else slot

    def _end_of_turn(self, rendered: str, slot_end: int) -> tuple[int | None, int, int]:
        """The id that ends an answer and where it begins and ends; None where nothing does."""
        after_blank = _BLANK.match(rendered, slot_end)
        assert after_blank is not None
        for begin in (slot_end, after_blank.end()):
            found = self.markers.at(rendered, begin)
            if found is not None and found[0] in self.end_ids:
                return found[0], begin, found[1]
        return None, slot_end, slot_end

    def _form(self, rendered: str, roles: Roles) -> Form:
        said: list[tuple[int, int]] = []
        for match in _MARKS.finditer(rendered):
            number = int(match[2])
            if roles[number] == "assistant":
                begin = self._begin_of_turn(rendered, match.start(), roles[:number])
                said.append((begin, self._end_of_turn(rendered, match.end())[2]))
        form: list[Control | Run] = []
        position = 0
        for begin, end in said:
            self._append(form, rendered[position:begin], is_said=False)
            self._append(form, rendered[begin:end], is_said=True)
            position = end
        self._append(form, rendered[position:], is_said=False)
        return (*(Control(token_id, False) for token_id in self.opening), *form)

    def _append(self, form: list[Control | Run], text: str, *, is_said: bool) -> None:
        parts: list[str | Slot] = []
        start = _start_after(form)
        for atom in self._atoms(text):
            if not isinstance(atom, int):
                parts.append(atom)
                continue
            if parts:
                form.append(Run(tuple(parts), start, is_said))
            form.append(Control(atom, is_said))
            parts, start = [], Start.TURN
        if parts:
            form.append(Run(tuple(parts), start, is_said))

    def _atoms(self, text: str) -> list[str | Slot | int]:
        atoms: list[str | Slot | int] = []
        end = 0
        for match in _MARKS.finditer(text):
            atoms += [*self.markers.split(text[end : match.start()]), _slot(match)]
            end = match.end()
        return [*atoms, *self.markers.split(text[end:])]

    def _rendered(self, roles: Roles, *, is_prompt: bool) -> str:
        messages = [
            {"role": role, "content": f"{_EDGE}{_MARK.format(number)}{_EDGE}"}
            for number, role in enumerate(roles)
        ]
        try:
            return self.render(messages, is_prompt)
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.name}: its chat template refuses a conversation of {', '.join(roles)} "
                f"({error}); give the turns that the model knows, a system turn as part of the "
                "first user turn"
            ) from None

    def _require_all(self, rendered: str, roles: Roles) -> None:
        found = [int(match[2]) for match in _MARKS.finditer(rendered)]
        for number, role in enumerate(roles):
            if found.count(number) != 1:
                raise DataError(
                    f"{self.name}: its chat template must hand on each turn once and unchanged, but"
                    f" turn {number} ({role}) of {', '.join(roles)} comes {found.count(number)} "
                    "times; leave such turns out or mend the template"
                )


def _slot(match: re.Match[str]) -> Slot:
    return Slot(int(match[2]), not match[1], not match[3])


def _start_after(form: Sequence[Control | Run]) -> Start:
    if not form:
        return Start.INPUT
    return Start.TEXT if isinstance(form[-1], Run) else Start.TURN


def roles_of(conversation: Conversation) -> Roles:
    return tuple(message.role for message in conversation)
