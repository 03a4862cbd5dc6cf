"""Functions and endpoints as reward and cost models: what they are told, and what is refused."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.config.sources import file_of, kind_of, name_of, reads_text, shown
from equilibrate.config.train import TrainConfig
from equilibrate.errors import ConfigError, DataError, ResourceError
from equilibrate.learning.sources import PER_REQUEST, TextScorer, check_source
from equilibrate.run.contents import Contents
from equilibrate.types import Message, Rollout
from tests.fakes import make_prompt, make_rollout

FUNCTIONS = """
import time

ASKED = []

def lengths(conversations):
    ASKED.extend(conversations)
    return [float(len(one["response"])) for one in conversations]

def one_short(conversations):
    return [0.0] * (len(conversations) - 1)

def not_finite(conversations):
    return [float("nan") if "7" in one["response"] else 1 for one in conversations]

def words(conversations):
    return ["1.0" for _ in conversations]

def number(conversations):
    return 1.0

def fails(conversations):
    return [1 / (one["response"] != "7 7") for one in conversations]

def hangs(conversations):
    time.sleep(20)

CONSTANT = 3

def ends(conversations):
    raise SystemExit(3)

def large(conversations):
    return [1e39 for _ in conversations]

def huge(conversations):
    return [10**400 for _ in conversations]

def table(conversations):
    return {row: 0.5 for row in range(len(conversations))}

def some(conversations):
    return {0.1, 0.2, 0.3}

def raw(conversations):
    return b"abc"

def lazy(conversations):
    return (1 / (one["response"] != "7 7") for one in conversations)

def together(conversations):
    if len(conversations) > 1:
        raise ValueError("real reason")
    return [0.0]

def slow_to_fail(conversations):
    time.sleep(0.2)
    raise ValueError("real reason")
"""


def rollout(*response: int) -> Rollout:
    turns = (Message(role="system", content="be kind"), Message(role="user", content="how ?"))
    prompt = make_prompt(f"asks for {response[0]}")
    return replace(make_rollout(prompt, response=response), messages=turns)


ROLLOUTS = [rollout(8, 2), rollout(7, 7), rollout(3)]


def decode(token_ids: list[int]) -> str:
    return " ".join(map(str, token_ids))


def scored(source: str, *, seconds: float = 60.0, rollouts: Any = ROLLOUTS) -> list[float]:
    return TextScorer(source, seconds=seconds).score(rollouts, decode)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my rewards.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ("models/reward", "folder", "models/reward"),
        ("/data/a:b", "folder", "/data/a:b"),
        ("", "folder", ""),
        ("rewards.py", "folder", "rewards.py"),
        ("rewards.py:score", "function", "score"),
        ("/some where/rewards.py:score", "function", "score"),
        ("json:dumps", "function", "json:dumps"),
        ("package.module:score", "function", "package.module:score"),
        ("https://host:80/score", "endpoint", "https://host:80/score"),
    ],
)
def test_sources_are_told_apart_by_their_names(source: str, kind: str, name: str) -> None:
    assert kind_of(source) == kind
    assert reads_text(source) == (kind != "folder")
    assert reads_text(Path(source)) == (kind != "folder")
    assert name_of(source) == name


def test_the_file_of_a_function() -> None:
    assert file_of("a/b.py:f") == Path("a/b.py")
    assert file_of("json:dumps") == Path(json.__file__)
    assert file_of("sys:exit") is None


def test_a_function_reads_the_turns_of_the_prompt_and_the_answer(file: Path) -> None:
    found = TextScorer(f"{file}:lengths", seconds=60)
    assert found.score(ROLLOUTS, decode) == [3.0, 3.0, 1.0]
    asked = found._ask.__globals__["ASKED"]  # type: ignore[attr-defined]
    assert asked[0] == {
        "messages": [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "how ?"},
        ],
        "response": "8 2",
    }
    assert scored(f"{file}:lengths", rollouts=[]) == []


def test_a_function_of_a_module() -> None:
    assert scored("tests.unit.learning.test_sources:zeros") == [0.0, 0.0, 0.0]


def zeros(conversations: list[dict[str, Any]]) -> list[float]:
    return [0.0] * len(conversations)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("one_short", r"gave 2 scores for 3 answers; give one for each"),
        ("not_finite", r"the score \(nan\) of answer 1, to prompt 'asks for 7', must be a finite"),
        ("words", r"the score \('1\.0'\) of answer 0"),
        ("number", r"must give a list of 3 numbers, got float"),
        ("ends", r"SystemExit \(3\) in .*, of answer 0"),
        ("large", r"the score \(1e\+39\) of answer 0.*must be a finite number"),
        ("huge", r"the score \(10+\) of answer 0.*must be a finite number"),
        ("table", r"must give a list of 3 numbers, got dict"),
        ("some", r"must give a list of 3 numbers, got set"),
        ("raw", r"must give a list of 3 numbers, got bytes"),
        ("lazy", r"ZeroDivisionError \(.*\) in .*, of answer 1, to prompt 'asks for 7'"),
        ("together", r"ValueError \(real reason\) in .*, of answers 1 to 2 together"),
        (
            "fails",
            r"ZeroDivisionError \(.*\) in .*my rewards\.py:23, of answer 1, to prompt 'asks for 7'",
        ),
    ],
)
def test_what_a_function_does_wrong_is_said_with_its_name(file: Path, name: str, told: str) -> None:
    with pytest.raises(DataError, match=rf"my rewards\.py:{name}: {told}"):
        scored(f"{file}:{name}")


def test_what_a_slow_function_fails_on_is_told_when_there_is_no_time_to_look(file: Path) -> None:
    with pytest.raises(DataError, match=r"ValueError \(real reason\) in .*, of 768 answers"):
        scored(f"{file}:slow_to_fail", seconds=1.0, rollouts=ROLLOUTS * 256)


def test_an_error_of_an_earlier_call_is_not_told_again(file: Path) -> None:
    source = TextScorer(f"{file}:lengths", seconds=1.0)
    source._failed = DataError("of before")
    source._ask = lambda _: time.sleep(20)
    with pytest.raises(ResourceError, match="hangs"):
        source.score(ROLLOUTS, decode)


def test_a_module_that_ends_itself_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(DataError, match=r"script\.py cannot be imported: SystemExit \(0\)"):
        check_source(f"{script}:f")


def test_no_password_of_an_address_is_shown() -> None:
    assert shown("https://me:secret@host:80/score?key=secret#x") == "https://host:80/score"
    assert name_of(Path("https://me@host/a")) == "https://host/a"
    assert shown("a/b.py:f") == "a/b.py:f"


@pytest.mark.parametrize(
    "address", ["http://host:999999/x", "http:///score", "https:/", "http:// foo/bar"]
)
def test_an_address_that_leads_nowhere_is_refused_at_the_door(address: str) -> None:
    with pytest.raises(DataError, match="must be an address with a host"):
        check_source(address)


def test_a_function_that_hangs_meets_its_deadline(file: Path) -> None:
    with pytest.raises(ResourceError, match=r"hangs: .* 3 answers within 1 s.*phase_seconds"):
        scored(f"{file}:hangs", seconds=0.3)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{}:length", "has no function length; it has ends, fails, hangs"),
        ("{}:CONSTANT", "has no function CONSTANT"),
        ("no_such_file.py:f", "no_such_file.py does not exist"),
        ("no_such_package.module:f", "cannot be imported: ModuleNotFoundError"),
        ("no_such_module:f", "no_such_module cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_that_is_not_there_is_refused_before_it_is_needed(
    file: Path, source: str, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        check_source(source.format(file))


Reply = Callable[[dict[str, Any]], tuple[int, bytes]]


@contextmanager
def served(reply: Reply, seen: dict[str, str] | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/score"
            (seen if seen is not None else {}).update(self.headers)
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, body = reply(asked)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("location", "/score")
            self.send_header("content-length", str(len(body)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score"
    finally:
        server.shutdown()
        server.server_close()


def lengths(asked: dict[str, Any]) -> tuple[int, bytes]:
    scores = [len(one["response"]) for one in asked["conversations"]]
    return 200, json.dumps({"scores": scores}).encode()


def test_an_endpoint_is_asked_in_batches_and_again_when_it_is_busy() -> None:
    sizes: list[int] = []

    def reply(asked: dict[str, Any]) -> tuple[int, bytes]:
        sizes.append(len(asked["conversations"]))
        return (503, b"{}") if len(sizes) == 1 else lengths(asked)

    with served(reply) as address:
        found = scored(address, rollouts=[rollout(1)] * PER_REQUEST + [rollout(8, 2)])
    assert found == [1.0] * PER_REQUEST + [3.0]
    assert sizes == [PER_REQUEST, PER_REQUEST, 1]


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        ((503, b"{}"), ResourceError, r"gave no scores, asked up to 4 times \(InternalServerError"),
        ((404, b"{}"), ResourceError, r"gave no scores.*NotFoundError"),
        ((302, b"{}"), ResourceError, r"gave no scores.*302"),
        (
            (200, b"[1, 2, 3]"),
            DataError,
            r'must answer with a JSON object \{"scores": \[\.\.\.\]\}',
        ),
        ((200, b'{"scores": [1, 2]}'), DataError, "gave 2 scores for 3 answers"),
        ((200, b'{"scores": [1, null, 2]}'), DataError, r"the score \(None\) of answer 1"),
        ((200, b'{"scores": 1}'), DataError, "must give a list of 3 numbers, got int"),
        ((200, b"no json"), (DataError, ResourceError), "score: "),
    ],
)
def test_what_an_endpoint_does_wrong_is_said_with_its_address(
    answer: tuple[int, bytes], error: type[Exception], told: str
) -> None:
    with (
        served(lambda _: answer) as address,
        pytest.raises(error, match=rf"http://127.0.0.1:\d+/score: .*{told}|{told}"),
    ):
        scored(address)


def test_an_endpoint_is_told_nothing_of_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORG_ID", "PROJECT_ID", "API_KEY"):
        monkeypatch.setenv(f"OPENAI_{name}", "account")
    seen: dict[str, str] = {}
    with served(lengths, seen) as address:
        scored(address)
    assert seen
    assert "account" not in " ".join(seen.values())


def test_an_endpoint_that_hangs_meets_the_deadline() -> None:
    free = threading.Event()

    def reply(asked: dict[str, Any]) -> tuple[int, bytes]:
        free.wait(20)
        return lengths(asked)

    with served(reply) as address:
        with pytest.raises(ResourceError, match=r"/score: gave no scores"):
            scored(address, seconds=0.5)
        free.set()


def test_what_a_key_holds_of_a_source(file: Path, tmp_path: Path) -> None:
    contents = Contents(tmp_path / "stages")
    before = contents.of(f"{file}:lengths")
    moved = tmp_path / "elsewhere.py"
    shutil.copy(file, moved)
    assert contents.of(f"{moved}:lengths") == contents.of(Path(f"{moved}:lengths")) == before
    assert contents.of(f"{file}:words") != before
    file.write_text(FUNCTIONS + "\n# changed\n")
    assert contents.of(f"{file}:lengths") != before
    assert contents.of("http://a/score") != contents.of("http://b/score")
    with pytest.raises(DataError, match=r"no_such_package\.module:f: its module cannot be found"):
        contents.of("no_such_package.module:f")
    with pytest.raises(DataError, match=r"gone\.py: cannot be read"):
        contents.of(f"{tmp_path}/gone.py:f")


TRAIN: dict[str, Any] = {
    "data": {"policy": "p", "reward": "rewards.py:f", "cost": "models/cost", "prompts": "x.jsonl"}
}


def test_masks_refuse_scorers_without_scores_of_tokens() -> None:
    parse_settings(TrainConfig, TRAIN)
    for source in ("cost", "critics"):
        parse_settings(TrainConfig, TRAIN | {"ama": {"source": source}})
    for source in ("reward", "both"):
        with pytest.raises(ConfigError, match=r"the score of every token, and data\.reward \(rewa"):
            parse_settings(TrainConfig, TRAIN | {"ama": {"source": source}})


def test_offline_only_sampled_answers_are_scored_by_text() -> None:
    data = {"policy": "p", "reward": "rewards.py:f", "cost": "http://h/c", "train": "x.jsonl"}
    parse_settings(FitConfig, {"data": data, "objective": {"type": "ars"}})
    with pytest.raises(ConfigError, match=r"ama\.source \(cost\) .* data\.cost"):
        parse_settings(FitConfig, {"data": data, "objective": {"type": "ars"}, "ama": {}})
    with pytest.raises(ConfigError, match=r"data\.reward \(rewards\.py:f\) scores answers that"):
        parse_settings(FitConfig, {"data": data, "objective": {"type": "dpo"}})
