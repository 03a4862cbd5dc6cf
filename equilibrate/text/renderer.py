"""Conversations to token ids and back: the one way for sampling, training, judging, evaluation.

With a chat template the ids are those of the template, its own beginning-of-sequence token or none
included. Without one the plain form holds: the beginning of sequence if the tokenizer itself puts
one before a text, then every content as it is; a blank line follows a system turn, the end of
sequence an assistant's.

What is said never becomes a control token, whatever it spells: only the template writes those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from equilibrate.config.base import TextConfig
from equilibrate.errors import DataError
from equilibrate.text.ends import read_end_ids
from equilibrate.text.plain import PlainText, Start
from equilibrate.text.template import ChatTemplate, Control, Form, Markers, ReplyForm, roles_of
from equilibrate.types import Conversation, as_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_FORM = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'system' %}{{ '\\n\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)

_Piece = tuple[int | tuple[Start, str], bool]
"""A control token or a text, and whether the assistant said it."""


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """A prompt and the answer to it."""

    token_ids: list[int]
    prompt_length: int
    learn_start: int
    """Position of the first token of the answer that was not given."""


class Renderer:
    """Tokenizer and chat template of one model folder. A string is a conversation of one turn."""

    def __init__(self, folder: str | Path, text: TextConfig | None = None) -> None:
        """Args: text: None for the defaults.
        Raises: DataError if the folder holds no fast tokenizer or nothing that ends an answer.
        """
        text = text or TextConfig()
        self.tokenizer = load_tokenizer(folder)
        self._ends = read_end_ids(Path(folder), self.tokenizer.eos_token_id)
        control = _control_tokens(self.tokenizer, self._ends)
        self._end_texts = tuple(text for text, number in control.items() if number in self._ends)
        self._plain = PlainText(self.tokenizer.backend_tokenizer, control)
        unknown = {self.tokenizer.unk_token_id} - set(self._ends)
        self.control_ids = frozenset(control.values()) - unknown
        """Ids that no content yields. One that stands for unknown text alone is none of them."""
        self._template = _template(
            self.tokenizer,
            control,
            self._ends,
            name=str(folder),
            # In place of the clock: always the beginning of one day.
            arguments={**text.template_arguments, "strftime_now": text.date.strftime},
        )

    def prompt_ids(self, conversation: str | Conversation) -> list[int]:
        """Up to where the response begins."""
        return self.prompts([conversation])[0]

    def prompts(self, conversations: Sequence[str | Conversation]) -> list[list[int]]:
        """`prompt_ids` of each; equal texts are tokenized once.

        Raises: DataError if the template refuses such a conversation.
        """
        rows = [self._prompt(as_conversation(conversation)) for conversation in conversations]
        return [ids for ids, _ in self._encode(rows)]

    def answers(
        self,
        conversations: Sequence[str | Conversation],
        responses: Sequence[str],
        *,
        given: Iterable[str] | None = None,
        has_end: Iterable[bool] | None = None,
    ) -> list[EncodedAnswer]:
        """Prompt, answer and its end, as sampling would have left them.

        An end of turn that a response already carries is not added twice.

        Args:
            given: beginning of each answer that is context; the response goes on right behind it.
            has_end: whether each answer ends with its response; by default all do.
        """
        given = repeat("", len(responses)) if given is None else given
        has_end = repeat(True, len(responses)) if has_end is None else has_end
        heads, bodies = [], []
        for conversation, response, begun, ends in zip(
            conversations, responses, given, has_end, strict=True
        ):
            turns = as_conversation(conversation)
            heads.append(self._prompt(turns))
            form = self._template.reply(roles_of(turns))
            start = _start_after(heads[-1])
            bodies.append(_reply(form, start, begun, self._cut(response), ends))
        encoded = zip(self._encode(heads), self._encode(bodies), strict=True)
        return [
            EncodedAnswer([*head, *body], len(head), len(head) + said.count(False))
            for (head, _), (body, said) in encoded
        ]

    def render(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Ids of a conversation that ends with an answer, and a mask: True on what the assistant
        said in each of its turns, their ends included."""
        *turns, last = conversation
        if last.role != "assistant":
            raise DataError(f"the last turn ({last.role}) must be the assistant's; leave it out")
        head = self._prompt(tuple(turns))
        form = self._template.reply(roles_of(tuple(turns)))
        body = _reply(form, _start_after(head), "", self._cut(last.content), True)
        return self._encode([head + body])[0]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a response, without what ends it, special tokens and white space around it."""
        return self._decoded(self._without_end(token_ids)).strip()

    def decoded_ends(self, token_ids: Sequence[int]) -> list[int]:
        """How many characters of `decode(token_ids)` are there after each token.

        A character of several tokens is there after the last of them.
        """
        kept = self._without_end(token_ids)
        whole = self._decoded(kept)
        ends = _streamed_ends(self.tokenizer.backend_tokenizer, kept, whole) or accumulate(
            (len(self._decoded(kept[:end]).rstrip("\ufffd")) for end in range(1, len(kept) + 1)),
            max,
        )
        before, length = len(whole) - len(whole.lstrip()), len(whole.strip())
        inside = [min(max(end - before, 0), length) for end in ends]
        return [*inside, *[length] * (len(token_ids) - len(kept))]

    def answer_ends(
        self, conversation: str | Conversation, response: str, *, has_end: bool = True
    ) -> list[int]:
        """How many characters of a response have been read after each token of its text.

        Args: response: without white space around it, as `decode` gives it.
        Returns: for each token of what `answers` makes of it, but for its end; 0 or less while the
            response has not begun, more than its length for what the template puts behind it.
        """
        turns = as_conversation(conversation)
        form = self._template.reply(roles_of(turns))
        start = _start_after(self._prompt(turns))
        piece, _ = _reply(form, start, "", self._cut(response), has_end)[0]
        assert not isinstance(piece, int)
        return [end - len(form.before) for end in self._plain.ends(*piece)]

    def _decoded(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def _without_end(self, token_ids: Sequence[int]) -> list[int]:
        kept = list(token_ids)
        # Here as well: not every end is declared special.
        while kept and kept[-1] in self._ends:
            kept.pop()
        return kept

    def _prompt(self, conversation: Conversation) -> list[_Piece]:
        if not conversation or conversation[-1].role == "assistant":
            raise DataError("a prompt must end with a turn of the user, for the answer to follow")
        contents = [
            self._cut(turn.content) if turn.role == "assistant" else turn.content
            for turn in conversation
        ]
        return _filled(self._template.prompt(roles_of(conversation)), contents)

    def _cut(self, response: str) -> str:
        """Without the ends that it already carries."""
        while bare := next(
            (text for text in self._end_texts if response.rstrip().endswith(text)), ""
        ):
            response = response.rstrip().removesuffix(bare)
        return response

    def _encode(self, rows: Sequence[list[_Piece]]) -> list[tuple[list[int], list[bool]]]:
        texts = [piece for row in rows for piece, _ in row if not isinstance(piece, int)]
        ids = self._plain.encode(texts)
        encoded = []
        for row in rows:
            token_ids: list[int] = []
            mask: list[bool] = []
            for piece, is_said in row:
                token_ids += [piece] if isinstance(piece, int) else ids[piece]
                mask += [is_said] * (len(token_ids) - len(mask))
            encoded.append((token_ids, mask))
        return encoded


def _filled(form: Form, contents: Sequence[str]) -> list[_Piece]:
    return [
        (part.token_id if isinstance(part, Control) else part.fill(contents), part.is_said)
        for part in form
    ]


def _start_after(prompt: Sequence[_Piece]) -> Start:
    """Of an answer: what stands before it, where nothing was said what stands before that."""
    start = None
    for piece, _ in reversed(prompt):
        if isinstance(piece, int):
            return start or Start.TURN
        if piece[1]:
            return Start.TEXT
        start = piece[0]
    return start or Start.INPUT


def _reply(form: ReplyForm, start: Start, given: str, response: str, has_end: bool) -> list[_Piece]:
    pieces: list[_Piece] = []
    before = form.before
    if given:
        given = given.lstrip() if form.slot.trims_left else given
        pieces.append(((start, before + given), False))
        start, before = Start.TEXT, ""
    elif form.slot.trims_left:
        response = response.lstrip()
    if has_end:
        response = (response.rstrip() if form.slot.trims_right else response) + form.after
    pieces.append(((start, before + response), True))
    return [*pieces, (form.end_id, True)] if has_end else pieces


def _streamed_ends(backend: Any, token_ids: Sequence[int], whole: str) -> list[int]:
    """Characters of `whole` that are there after each token, decoded one by one; none where that
    does not come to the same text."""
    stream = DecodeStream(skip_special_tokens=True)
    text, ends = "", []
    try:
        for number in token_ids:
            text += stream.step(backend, number) or ""
            ends.append(len(text))
    except Exception as error:  # the library has no class for it
        if "prefix" not in str(error):
            raise
        # Sampled bytes that are no character, which SentencePiece's decoder counts anew each time.
        return []
    # A character that was cut off is never given, and stands in the text as one that is unknown.
    return ends if whole.startswith(text) and not whole[len(text) :].strip("\ufffd") else []


def end_ids_of(folder: str | Path) -> list[int]:
    """All ids that end an answer, by generation config, config or tokenizer, as the `Renderer` of
    the folder has them. Raises: DataError as it does."""
    return list(read_end_ids(Path(folder), load_tokenizer(folder).eos_token_id))


def load_tokenizer(folder: str | Path, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """Args: gguf_file: a file of the folder that has the tokenizer in it.
    Raises: DataError if the folder holds no fast tokenizer.
    """
    try:
        # Never code that comes with a model, and no question whether to run it.
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            **({"gguf_file": gguf_file} if gguf_file else {}),
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: holds no tokenizer ({error}); give a folder with tokenizer.json"
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"{folder}: {type(tokenizer).__name__} has no fast form; save it with tokenizer.json"
        )
    return tokenizer


def _control_tokens(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> dict[str, int]:
    """Id by text of everything that is declared to be more than text, whichever way.

    Runs of white space that are mere added tokens (GPT-NeoX, Gemma) stay text.
    """
    found = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content and (token.special or token.content.strip())
    }
    for text in filter(None, tokenizer.all_special_tokens):
        found[text] = tokenizer.convert_tokens_to_ids(text)
    for number in ends:
        text = tokenizer.convert_ids_to_tokens(number) if number < len(tokenizer) else None
        if text and tokenizer.decode([number]).strip():
            found.setdefault(text, number)
    return found


def _template(
    tokenizer: PreTrainedTokenizerBase,
    control: Mapping[str, int],
    ends: Sequence[int],
    *,
    name: str,
    arguments: Mapping[str, Any],
) -> ChatTemplate:
    is_plain = not tokenizer.chat_template
    chosen = PLAIN_FORM if is_plain else None

    def render(messages: list[dict[str, str]], is_prompt: bool) -> str:
        rendered: str = tokenizer.apply_chat_template(
            messages,
            chat_template=chosen,
            add_generation_prompt=is_prompt,
            tokenize=False,
            **arguments,
        )
        return rendered

    bos = tokenizer.bos_token_id
    has_bos = is_plain and bos is not None and tokenizer("")["input_ids"][:1] == [bos]
    return ChatTemplate(
        render=render,
        markers=Markers(
            control,
            {
                token.content: (token.lstrip, token.rstrip)
                for token in tokenizer.added_tokens_decoder.values()
            },
        ),
        end_ids=ends,
        eos_id=ends[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
        opening=(bos,) if has_bos else (),
        name=name,
    )
