"""What one request may ask of the server: it has one engine, and everybody waits for it."""

from __future__ import annotations

import json

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 2**20
MAX_ANSWERS = 8
"""Answers to one prompt (`n`); the number of prompts is bounded by the size of the body."""


def refusal(body: bytes) -> tuple[int, str] | None:
    """HTTP status and reason why a request is turned away, None if it may pass.

    A body that is no JSON object passes: the schema behind this check refuses it with more detail.
    """
    if len(body) > MAX_BODY_BYTES:
        return 413, f"the body must have at most {MAX_BODY_BYTES} bytes"
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    answers = fields.get("n") if isinstance(fields, dict) else None
    if isinstance(answers, int) and answers > MAX_ANSWERS:
        return 400, f"n ({answers}) must be at most {MAX_ANSWERS}"
    return None


class RequestLimits:
    """ASGI middleware that reads a body no further than the limit and answers refusals itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, is_complete = b"", False
        while not is_complete and len(body) <= MAX_BODY_BYTES:
            message = await receive()
            body += message.get("body", b"")
            is_complete = not message.get("more_body", False)
        if (refused := refusal(body)) is not None:
            status, reason = refused
            error = {"message": reason, "type": "invalid_request_error", "code": status}
            await JSONResponse({"error": error}, status_code=status)(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, receive_again, send)
