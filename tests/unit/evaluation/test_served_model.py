from __future__ import annotations

import json
import sys
import threading

import pytest

from equilibrate import cli
from equilibrate.errors import ConfigError, DataError, ResourceError
from equilibrate.evaluation.served_model import ServedModel


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_replies_keep_the_order_of_their_conversations(serve_chat):
    served = ServedModel(
        base_url=serve_chat(lambda body: body["messages"][-1]["content"].upper()),
        model="m",
        num_threads=3,
    )
    texts = [f"word {i}" for i in range(7)]
    assert served([say(text) for text in texts]) == [text.upper() for text in texts]
    assert served([]) == []


def test_so_many_conversations_are_in_flight_as_there_are_threads(serve_chat):
    # Nobody is answered before two have asked: one at a time would break the barrier.
    both = threading.Barrier(2, timeout=20)

    def reply(body):
        both.wait()
        return "ok"

    served = ServedModel(base_url=serve_chat(reply), model="m", num_threads=2)
    assert served([say("a"), say("b")]) == ["ok", "ok"]


def test_the_request_is_what_was_configured(serve_chat, monkeypatch):
    monkeypatch.setenv("OUR_TEST_KEY", "sesame")
    bodies = []
    served = ServedModel(
        base_url=serve_chat(lambda body: bodies.append(body) or "ok"),
        model="m",
        api_key_variable="OUR_TEST_KEY",
        temperature=0.5,
        max_tokens=7,
    )
    conversation = [{"role": "system", "content": "be brief"}, *say("hi")]
    served([conversation])
    (body,) = bodies
    assert body["path"] == "/v1/chat/completions"
    assert body["authorization"] == "Bearer sesame"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.5, 7)
    assert body["messages"] == conversation
    assert "sesame" not in repr(served)


def test_an_endpoint_that_refuses_is_named(serve_chat):
    base_url = serve_chat(lambda body: 400)
    with pytest.raises(ResourceError, match=rf"{base_url}.*'m' refuses the question \(BadRequest"):
        ServedModel(base_url=base_url, model="m")([say("hi")])


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_question_is_told_apart_from_an_endpoint_that_fails(serve_chat, status):
    served = ServedModel(
        base_url=serve_chat(lambda body: status if "bad" in str(body["messages"]) else "ok"),
        model="m",
    )
    replies = served.replies([say("good"), say("bad"), say("good")])
    assert [reply.text for reply in replies] == ["ok", "", "ok"]
    assert "refuses the question" in replies[1].refusal
    assert str(status) in replies[1].refusal
    with pytest.raises(DataError, match="refuses the question"):
        served.map(lambda ask, text: ask(say(text)), ["bad"])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_is_no_refusal_of_one_question(serve_chat, status):
    served = ServedModel(base_url=serve_chat(lambda body: status), model="m")
    with pytest.raises(ResourceError, match="'m' gave no answer"):
        served.map(lambda ask, text: ask(say(text)), ["hi"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>please log in</html>", r"gave no answer \(JSONDecodeError"),
        (b'"ok"', "answered without a choice"),
        (b"{}", "answered without a choice"),
        (b'{"choices": []}', "answered without a choice"),
        (b'{"choices": [{"finish_reason": "stop"}]}', "answered without a choice"),
        (b'{"choices": [{"message": {"content": [1]}}]}', "answered without a choice"),
    ],
)
def test_a_reply_that_is_no_completion_is_no_answer(serve_chat, body, message):
    base_url = serve_chat(lambda _: body)
    with pytest.raises(ResourceError, match=rf"{base_url}.*'m' {message}"):
        ServedModel(base_url=base_url, model="m")([say("hi")])


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_reply_that_was_cut_off_answers_no_question(serve_chat, reason):
    message = {"role": "assistant", "content": "First, you"}
    choice = {"index": 0, "finish_reason": reason, "message": message}
    served = ServedModel(base_url=serve_chat(lambda body: [choice]), model="m")
    # Whoever samples answers takes what came.
    assert served([say("hi")]) == ["First, you"]
    with pytest.raises(DataError, match=rf"cut off \({reason}\)"):
        served.map(lambda ask, text: ask(say(text)), ["hi"])


def test_half_a_surrogate_pair_is_sent_as_a_question_mark(serve_chat):
    served = ServedModel(base_url=serve_chat(lambda b: b["messages"][0]["content"]), model="m")
    assert served([say("a\ud800 b\U0001f600")]) == ["a? b\U0001f600"]


def test_a_reply_without_text_is_empty(serve_chat):
    message = {"role": "assistant", "content": None}
    choice = {"index": 0, "finish_reason": "length", "message": message}
    served = ServedModel(base_url=serve_chat(lambda body: [choice]), model="m")
    assert served([say("hi")]) == [""]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, r"base_url \('localhost:8000'\)"),
        ({"num_threads": 0}, r"num_threads \(0\)"),
        ({"timeout_seconds": -1.0}, r"timeout_seconds \(-1.0\)"),
    ],
)
def test_options_out_of_range_are_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        ServedModel(**{"base_url": "http://127.0.0.1:1/v1", "model": "m"} | options)


def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match=r"api_key_variable must name .* none of") as caught:
        ServedModel(base_url="http://127.0.0.1:1/v1", model="m", api_key_variable="sk-123")
    assert "sk-123" not in str(caught.value)


def test_a_missing_package_is_named_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ResourceError, match=r"pip install 'equilibrate\[judge\]'"):
        ServedModel(base_url="http://127.0.0.1:1/v1", model="m")


def test_labelling_asks_for_a_constrained_reply(serve_chat, tmp_path):
    asked = []

    def reply(body):
        asked.append(body)
        return '{"analysis": "", "risky_content": true, "malicious_intent": false, ' + (
            '"sounds_harmful": true}'
        )

    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    url = serve_chat(reply)
    options = ("--out", str(tmp_path / "out"), "--endpoint", url, "--model", "m")
    for _ in range(2):
        assert cli.main(["fdc", "label", str(file), *options]) == 0
    # The second run has both answers on disk.
    assert len(asked) == 2
    schema = asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"][1:] == ["risky_content", "malicious_intent", "sounds_harmful"]
    labelled = (tmp_path / "out" / "labelled.jsonl").read_text().splitlines()
    assert [json.loads(line)["category"] for line in labelled] == ["EHD", "EHD"]
