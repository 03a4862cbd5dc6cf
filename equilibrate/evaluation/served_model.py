"""A model behind an OpenAI-compatible endpoint: our own `serve`, vLLM, or a provider."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

from equilibrate.errors import ConfigError, DataError, ResourceError

REFUSING = (400, 413, 422)
"""HTTP statuses that are about this question, which others need not share: a filter of contents,
or more text than the model takes. To ask it again would change nothing."""

Message = dict[str, str]
"""{"role": "user" | "assistant" | "system", "content": text}"""
Messages = Sequence[Message]
Ask = Callable[[Messages], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer of a model."""

    text: str
    first_tokens: Mapping[str, float] = field(default_factory=dict)
    """Log-probabilities of the likeliest first tokens, without white space around them; empty
    unless the request asks for `logprobs`."""
    cut_off: str = ""
    """What ended the text before its end: "length" or "content_filter"."""
    refusal: str = ""
    """Why the endpoint does not take the question; there is no text then."""


Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Answers conversations over the chat-completions protocol.

    Example: ServedModel(base_url="http://127.0.0.1:8000/v1", model="my-run").
    """

    base_url: str
    """The address that ends before `/chat/completions`, usually in `/v1`."""
    model: str
    api_key_variable: str = ""
    """Name of the environment variable that holds the key; empty for an endpoint without keys."""
    temperature: float = 0.0
    max_tokens: int | None = None
    """Of one reply; None leaves it to the endpoint."""
    response_format: Mapping[str, Any] | None = None
    """Form of every reply, for example a JSON schema, as the protocol writes it; None for text."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of every request, as the client `openai` takes them."""
    num_threads: int = 8
    """Conversations in flight."""
    timeout_seconds: float = 60.0
    """Of one request. The client itself repeats it twice when the endpoint is busy or silent."""

    def __post_init__(self) -> None:
        """Raises: ConfigError for an option out of its range, ResourceError without `openai`."""
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"base_url ({self.base_url!r}) must start with http:// or https://, for example "
                "http://127.0.0.1:8000/v1"
            )
        for name in ("num_threads", "timeout_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be above 0")
        if self.api_key_variable and not os.environ.get(self.api_key_variable):
            # Its value stays unsaid: it may be the key itself, put there by mistake.
            raise ConfigError(
                "api_key_variable must name an environment variable that holds the key, and none "
                "of that name is set; export it, or leave the option out"
            )
        # Here and not at the first question: answers are sampled for hours before a judge is asked.
        if find_spec("openai") is None:
            raise ResourceError(
                "the package `openai` asks chat endpoints and is not installed; "
                "pip install 'equilibrate[judge]'"
            )

    def __call__(self, conversations: Sequence[Messages]) -> list[str]:
        """One reply per conversation, in order.

        Raises: ResourceError if the endpoint does not answer or refuses.
        """
        replies = self.replies(conversations)
        if refusal := next((reply.refusal for reply in replies if reply.refusal), ""):
            raise ResourceError(refusal)
        return [reply.text for reply in replies]

    def replies(self, conversations: Iterable[Messages]) -> list[Reply]:
        """As a call, with all that is told of each; one that is refused ends nothing."""
        return self._each(self._reply, conversations)

    def map(self, work: Callable[[Ask, Item], Result], items: Iterable[Item]) -> list[Result]:
        """`work` on every item, several at a time, in order; it may ask as often as it likes.

        The first error ends it, and items that have not begun are left out. What `work` is handed
        raises DataError where the endpoint refuses this question or cuts its reply off.
        """
        return self._each(lambda client, item: work(partial(self._ask, client), item), items)

    def _each(self, work: Callable[[Any, Item], Result], items: Iterable[Item]) -> list[Result]:
        import openai

        key = os.environ[self.api_key_variable] if self.api_key_variable else "none"
        client = openai.OpenAI(base_url=self.base_url, api_key=key, timeout=self.timeout_seconds)
        with client, ThreadPoolExecutor(self.num_threads) as threads:
            return list(threads.map(partial(work, client), items))

    def _ask(self, client: Any, messages: Messages) -> str:
        reply = self._reply(client, messages)
        if reply.refusal:
            raise DataError(reply.refusal)
        if reply.cut_off:
            raise DataError(f"the reply was cut off ({reply.cut_off})")
        return reply.text

    def _reply(self, client: Any, messages: Messages) -> Reply:
        import openai

        wanted = {"max_tokens": self.max_tokens, "response_format": self.response_format}
        options = {name: value for name, value in wanted.items() if value is not None}
        options |= self.request
        try:
            completion = client.chat.completions.create(
                model=self.model,
                messages=[_sendable(message) for message in messages],
                temperature=self.temperature,
                **options,
            )
        # A body that is no JSON leaves the client as a ValueError.
        except (openai.OpenAIError, ValueError) as error:
            is_refusal = getattr(error, "status_code", None) in REFUSING
            told = (
                f"{self.base_url}: model {self.model!r} "
                f"{'refuses the question' if is_refusal else 'gave no answer'} "
                f"({type(error).__name__}: {error}); check the address, the model and the key"
            )
            if is_refusal:
                return Reply(text="", refusal=told)
            raise ResourceError(told) from error
        try:
            return _read(completion.choices[0])
        except (AttributeError, LookupError, TypeError) as error:
            raise ResourceError(
                f"{self.base_url}: model {self.model!r} answered without a choice; "
                "check that this is a chat-completions endpoint"
            ) from error


def _sendable(message: Message) -> Message:
    """Without halves of surrogate pairs, which no request can hold."""
    return {name: said.encode("utf-8", "replace").decode() for name, said in message.items()}


def _read(choice: Any) -> Reply:
    """Raises: AttributeError, LookupError or TypeError for what is no choice."""
    text = choice.message.content
    if not isinstance(text, str | None):
        raise TypeError("content must be text")
    told = getattr(choice.logprobs, "content", None) or []
    first: dict[str, float] = {}
    for token in told[0].top_logprobs if told else ():
        word = token.token.strip()
        first[word] = max(token.logprob, first.get(word, -math.inf))
    ended = choice.finish_reason
    cut_off = ended if ended in ("length", "content_filter") else ""
    return Reply(text=text or "", first_tokens=first, cut_off=cut_off)
