"""`python -m equilibrate serve RUN`, asked by the official client and by transformers."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from equilibrate.config.files import dump_config
from equilibrate.config.train import TrainConfig
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer, encode_prompt
from equilibrate.text.renderer import Renderer
from equilibrate.types import Message

START_SECONDS = 480
STOP_SECONDS = 60
PROMPT = "how do i clean the lamp ?"
MAX_TOKENS = 8


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    run: Path
    port: int
    log: Path

    @property
    def client(self) -> openai.OpenAI:
        base_url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh weights only repeat the last token.
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(run / "aligned")
    tokenizer.save_pretrained(run / "aligned")
    settings = {"max_new_tokens": 32, "max_model_len": 64, "memory_gib": 0.1}
    config = TrainConfig.model_validate({"output": str(run), "rollout": settings})
    (run / "config.yaml").write_text(dump_config(config))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "equilibrate", "serve", str(run), "--port", str(port)]
    with (run / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    server = Server(process, run, port, run / "serve.log")
    try:
        wait_until_ready(server)
        yield server
    finally:
        stop(process)


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while "Serving tiny at" not in server.log.read_text():
        assert server.process.poll() is None, server.log.read_text()
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.2)


def stop(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Ctrl-C; returns the processes that outlived the server, which are ended here."""
    if process.poll() is not None:
        return []
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    finally:
        _, alive = psutil.wait_procs(family, timeout=10)
        for left in (process, *alive):
            left.kill()
    return alive


def test_the_run_is_the_one_model(server: Server) -> None:
    assert [model.id for model in server.client.models.list()] == ["tiny"]


def test_greedy_chat_says_what_transformers_says(server: Server) -> None:
    model = AutoModelForCausalLM.from_pretrained(server.run / "aligned")
    tokenizer = AutoTokenizer.from_pretrained(server.run / "aligned")
    token_ids = encode_prompt(tokenizer, PROMPT)
    output = model.generate(
        torch.tensor([token_ids]), do_sample=False, max_new_tokens=MAX_TOKENS, use_cache=False
    )
    expected = tokenizer.decode(output[0, len(token_ids) :], skip_special_tokens=True).strip()

    chat = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": PROMPT}],
        temperature=0,
        max_tokens=MAX_TOKENS,
    )
    assert expected
    assert (chat.choices[0].message.content or "").strip() == expected
    assert chat.usage is not None
    # The template adds nothing to `<bos> prompt <sep>`.
    assert chat.usage.prompt_tokens == len(token_ids)
    completion = server.client.completions.create(
        model="tiny", prompt=token_ids, temperature=0, max_tokens=MAX_TOKENS
    )
    assert completion.choices[0].text.strip() == expected


def test_a_chat_is_read_and_said_in_the_ids_of_training(server: Server) -> None:
    asked = [("user", PROMPT), ("assistant", "it is a common item ."), ("user", "and the oven ?")]
    chat = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": role, "content": content} for role, content in asked],
        temperature=0,
        max_tokens=MAX_TOKENS,
        extra_body={"return_token_ids": True},
    )
    renderer = Renderer(server.run / "aligned")
    conversation = tuple(Message(role=role, content=content) for role, content in asked)
    prompt_ids = renderer.prompt_ids(conversation)
    assert chat.model_extra is not None
    assert chat.model_extra["prompt_token_ids"] == prompt_ids
    (choice,) = chat.choices
    assert choice.model_extra is not None
    said = choice.model_extra["token_ids"]
    # As text the answer is rendered for training and for judges.
    (answer,) = renderer.answers([conversation], [choice.message.content or ""])
    assert answer.token_ids[: len(prompt_ids) + len(said)] == [*prompt_ids, *said]


def test_another_model_is_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        server.client.completions.create(model="other", prompt="lamp", max_tokens=1)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"prompt": [5] * 64, "max_tokens": 1}, 400),  # no room for an answer in 64 tokens
        ({"prompt": "lamp", "max_tokens": 1, "n": 9}, 400),
        ({"prompt": "lamp " * 300_000, "max_tokens": 1}, 413),  # 1.5 MB
    ],
    ids=["too long", "too many answers", "too large"],
)
def test_what_is_too_much_is_refused(
    server: Server, request_: dict[str, object], status: int
) -> None:
    with pytest.raises(openai.APIStatusError) as refusal:
        server.client.completions.create(model="tiny", **request_)
    assert refusal.value.status_code == status


def test_web_pages_are_not_let_in(server: Server) -> None:
    answer = server.client.models.with_raw_response.list(extra_headers={"Origin": "http://evil"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/collective_rpc", "/pause", "/sleep"])
def test_routes_that_steer_the_engine_are_absent(server: Server, path: str) -> None:
    with pytest.raises(openai.NotFoundError):
        server.client.with_options(base_url=f"http://127.0.0.1:{server.port}").post(
            path, cast_to=object
        )


def test_the_port_is_open_on_the_loopback_alone(server: Server) -> None:
    connections = psutil.net_connections("inet")
    listening = {
        connection.laddr.ip
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == server.port
    }
    assert listening == {"127.0.0.1"}


def test_a_second_server_on_the_port_exits_4(server: Server) -> None:
    command = [sys.executable, "-m", "equilibrate", "serve", str(server.run)]
    second = subprocess.run(
        [*command, "--port", str(server.port)], capture_output=True, text=True, timeout=120
    )
    assert second.returncode == 4
    assert f"port ({server.port}) must be free" in second.stderr


def test_ctrl_c_ends_it_and_everything_it_started(server: Server) -> None:
    """Last in this file: the server is gone afterwards."""
    assert not stop(server.process)
    assert server.process.returncode == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()
