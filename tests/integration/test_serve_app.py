"""What serving refuses before it starts, and what one request may ask."""

import asyncio
import json
import shlex
import socket

import pytest

from deploy.request_limits import MAX_ANSWERS, MAX_BODY_BYTES, RequestLimits, refusal
from deploy.serve_app import engine_settings, read_run, ready_message, require_free
from equilibrate.config.formats import SETTINGS_FORMAT
from equilibrate.config.train import TrainConfig
from equilibrate.errors import DataError, ResourceError


def write_run(folder, *, with_model=True):
    (folder / "config.yaml").write_text(f"settings_format: {SETTINGS_FORMAT}\niterations: 7\n")
    if with_model:
        (folder / "aligned").mkdir()
        (folder / "aligned" / "config.json").write_text("{}")
    return folder


def test_a_finished_run_is_read(tmp_path):
    config, model = read_run(write_run(tmp_path))
    assert config.iterations == 7
    assert model == tmp_path / "aligned"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no config\.yaml"):
        read_run(tmp_path)


def test_an_unfinished_run_is_refused_with_the_command_that_finishes_it(tmp_path):
    with pytest.raises(DataError, match=r"no aligned model.*train --config .*config\.yaml"):
        read_run(write_run(tmp_path, with_model=False))


def test_a_taken_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"port \({port}\) must be free"):
            require_free(port)
    require_free(port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_does_not_exist_is_refused(port):
    with pytest.raises(ResourceError, match="must be free"):
        require_free(port)


def test_the_message_holds_a_request_that_can_be_pasted():
    command, url, *_, body = shlex.split(ready_message("it's", 8123).splitlines()[-1])
    assert (command, url) == ("curl", "http://127.0.0.1:8123/v1/chat/completions")
    assert json.loads(body)["model"] == "it's"


def test_the_engine_is_as_long_as_the_run_and_as_large_as_it_says():
    config = TrainConfig.model_validate(
        {"rollout": {"max_new_tokens": 32, "max_model_len": 96, "memory_gib": 0.25}}
    )
    settings = engine_settings(config)
    assert settings["dtype"] == "float32"
    assert settings["max_model_len"] == 96
    assert settings["kv_cache_memory_bytes"] == 268_435_456  # 2^30 / 4
    assert settings["enforce_eager"]
    on_gpu = engine_settings(TrainConfig(device="cuda", dtype="bfloat16"))
    assert "kv_cache_memory_bytes" not in on_gpu
    assert not settings["enable_chunked_prefill"]
    assert "enable_chunked_prefill" not in on_gpu
    assert on_gpu["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"n": 8}', None),
        (b'{"n": 9}', 400),
        (b'{"n": "9"}', None),  # the schema's own affair
        (b"[9]", None),
        (b"{", None),
        (b"[" * 10_000, None),  # deeper than Python's recursion limit
        (b"", None),
        (b"x" * MAX_BODY_BYTES, None),
        (b"x" * (MAX_BODY_BYTES + 1), 413),
    ],
)
def test_limits_of_a_body(body, status):
    refused = refusal(body)
    assert (refused and refused[0]) == status


def ask(chunks):
    """Send a body in chunks; returns what the app behind saw, the answer and the chunks read."""
    messages = [
        {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1}
        for index, chunk in enumerate(chunks)
    ]
    num_chunks, seen, answer = len(messages), [], []

    async def receive():
        return messages.pop(0)

    async def send(message):
        answer.append(message)

    async def app(scope, receive, send):
        seen.append((await receive())["body"])

    asyncio.run(RequestLimits(app)({"type": "http", "method": "POST"}, receive, send))
    return seen, answer, num_chunks - len(messages)


def test_a_body_in_pieces_arrives_whole():
    seen, answer, _ = ask([b'{"n"', b": 1}"])
    assert seen == [b'{"n": 1}']
    assert not answer


def test_reading_ends_at_the_limit():
    half = b" " * (MAX_BODY_BYTES // 2 + 1)
    seen, answer, read = ask([half] * 10)
    assert (seen, read) == ([], 2)
    assert answer[0]["status"] == 413


def test_too_many_answers_say_the_limit():
    seen, answer, _ = ask([b'{"n": 100}'])
    assert not seen
    assert answer[0]["status"] == 400
    assert f"at most {MAX_ANSWERS}" in json.loads(answer[1]["body"])["error"]["message"]
