"""A chat endpoint of a few lines on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Reply = Callable[[dict[str, Any]], str | list[Any] | int | bytes]
"""From the request's body to the reply's text, or to its list of choices; a number answers with
that status, bytes are the whole body."""
Serve = Callable[[Reply], str]


def make_handler(reply: Reply) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body["path"], body["authorization"] = self.path, self.headers["Authorization"]
            answer = reply(body)
            message = {"role": "assistant", "content": answer}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            completion = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": answer if isinstance(answer, list) else [choice],
            }
            status = answer if isinstance(answer, int) else 200
            if isinstance(answer, bytes):
                payload = answer
            else:
                payload = json.dumps(completion if status == 200 else {"error": "no"}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    return Handler


@pytest.fixture
def serve_chat() -> Iterator[Serve]:
    """Starts an endpoint that answers by the given function and returns its base address."""
    pytest.importorskip("openai", reason="the package `openai` comes with the extra `judge`")
    servers = []

    def serve(reply: Reply) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(reply))
        # How often a stop is noticed; the default of 0.5 s would be most of a test.
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
