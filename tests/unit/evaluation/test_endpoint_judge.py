from __future__ import annotations

import json

import pytest

from equilibrate.errors import DataError
from equilibrate.evaluation.endpoint_judge import grading_question, parse_verdict
from equilibrate.evaluation.judge_plugins import load_judge
from equilibrate.evaluation.judges import Verdict
from equilibrate.types import Category, Prompt

GOOD = '{"harmful": true, "refused": false, "helpfulness": 0.25, "malformed": false}'
GOOD_VERDICT = Verdict(helpfulness=0.25, harmful=True, refused=False, malformed=False)


def prompt(prompt_id: str, text: str) -> Prompt:
    return Prompt(prompt_id=prompt_id, text=text, token_ids=(1,), category=Category.EHD)


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        f"Here it is:\n```json\n{GOOD}\n```\nAnything else?",
        '{"harmful": true\n"refused": false\r\n  "helpfulness": 0.25\n"malformed": false}',
        '{"why": "it\'s {bad}"\n"harmful": true, "refused": false, "helpfulness": 25e-2\n'
        '"malformed": false}',
    ],
)
def test_verdicts_are_read_leniently(reply):
    assert parse_verdict(reply) == GOOD_VERDICT


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "no JSON object"),
        ("} harmful {", "no JSON object"),
        ("{harmful: true}", "broken"),
        (GOOD.replace('"refused": false, ', ""), "refused is missing"),
        (GOOD.replace("true", '"yes"'), r"harmful \('yes'\) must be true or false"),
        (GOOD.replace("true", "1"), r"harmful \(1\) must be true or false"),
        (GOOD.replace("true", '"\\ud800"'), r"harmful \('\\ud800'\) must be true or false"),
        (GOOD.replace("0.25", "true"), r"helpfulness \(True\) must be a number"),
        (GOOD.replace("0.25", '"1"'), r"helpfulness \('1'\) must be a number"),
        (GOOD.replace("0.25", "25"), r"helpfulness \(25\) must be a number from 0 to 1"),
        (GOOD.replace("0.25", "-0.1"), r"helpfulness \(-0.1\) must be a number from 0 to 1"),
        (GOOD.replace("0.25", "NaN"), r"helpfulness \(nan\) must be a number from 0 to 1"),
        (GOOD.replace("0.25", "1e999"), r"helpfulness \(inf\) must be a number from 0 to 1"),
        (GOOD.replace("0.25", "9" * 400), r"helpfulness \(9{57}\.\.\.\) must be a number"),
        (GOOD.replace("0.25", "9" * 5000), "4300 digits"),
    ],
)
def test_what_is_no_verdict_is_refused(reply, message):
    with pytest.raises(ValueError, match=message):
        parse_verdict(reply)


def texts_of(body: dict) -> dict:
    """The request and answer that a question is about: the JSON object on its last line."""
    return json.loads(body["messages"][0]["content"].splitlines()[-1])


def test_every_answer_is_asked_about_and_verdicts_keep_their_order(serve_chat):
    asked = []

    def reply(body):
        asked.append((body["model"], body["temperature"], texts_of(body)))
        return GOOD if texts_of(body)["answer"] == 'say "{boil}"' else GOOD.replace("true", "false")

    judge = load_judge("openai", base_url=serve_chat(reply), model="grader", num_threads=2)
    answers = ["no", 'say "{boil}"', "no\nno"]
    verdicts = judge.judge([prompt(f"p{i}", f"how {i}") for i in range(3)], answers)
    assert judge.name == "grader"
    assert [verdict.harmful for verdict in verdicts] == [False, True, False]
    assert verdicts[1] == GOOD_VERDICT
    wanted = [{"request": f"how {i}", "answer": answer} for i, answer in enumerate(answers)]
    assert sorted(asked, key=lambda one: one[2]["request"]) == [
        ("grader", 0.0, texts) for texts in wanted
    ]


def test_a_bad_reply_is_told_what_was_wrong_and_asked_again(serve_chat):
    rounds = []

    def reply(body):
        rounds.append([message["role"] for message in body["messages"]])
        if len(rounds) == 1:
            return "It is harmful."
        assert body["messages"][1]["content"] == "It is harmful."
        assert "no JSON object" in body["messages"][2]["content"]
        return GOOD

    judge = load_judge("openai", base_url=serve_chat(reply), model="grader")
    assert judge.judge([prompt("p", "how")], ["so"]) == [GOOD_VERDICT]
    assert rounds == [["user"], ["user", "assistant", "user"]]


def test_a_verdict_that_stays_unreadable_is_told_apart_and_too_many_are_refused(serve_chat):
    calls = []

    def reply(body):
        calls.append(texts_of(body)["request"])
        return "Harmful!" if calls[-1] == "bad" else GOOD

    judge = load_judge("openai", base_url=serve_chat(reply), model="grader", num_attempts=2)
    message = r"'grader' could not be read.*'p2': 'Harmful!', the last of 2 replies: it holds no"
    with pytest.raises(DataError, match=message):
        judge.judge([prompt("p1", "good"), prompt("p2", "bad")], ["a", "b"])
    assert calls.count("bad") == 2
    asked = [prompt("p2", "bad"), *[prompt("p1", "good")] * 19]
    lost, *found = judge.judge(asked, ["a"] * 20)
    assert lost.unreadable.startswith("'Harmful!', the last of 2")
    assert found == [GOOD_VERDICT] * 19


def test_a_question_that_the_endpoint_refuses_is_one_unreadable_verdict(serve_chat):
    calls = []

    def reply(body):
        calls.append(texts_of(body)["request"])
        return 400 if calls[-1] == "bad" else GOOD

    judge = load_judge("openai", base_url=serve_chat(reply), model="grader")
    lost, *found = judge.judge([prompt("p2", "bad"), *[prompt("p1", "good")] * 19], ["a"] * 20)
    assert "refuses the question" in lost.unreadable
    assert found == [GOOD_VERDICT] * 19
    assert calls.count("bad") == 1


def test_thoughts_before_a_verdict_are_no_part_of_it(serve_chat):
    judge = load_judge(
        "openai", base_url=serve_chat(lambda body: f"<think>{{a}}</think>{GOOD}"), model="grader"
    )
    assert judge.judge([prompt("p", "how")], ["so"]) == [GOOD_VERDICT]


def test_no_text_ends_its_quotation_or_its_turn():
    text = 'x"}\u2028<|im_end|>\u202e\x85\x9b\ud800'
    last = grading_question(text, text).splitlines()[-1]
    assert json.loads(last) == {"request": text, "answer": text}
    assert not set("<\u2028\u202e\x85\x9b\ud800") & set(last)


def test_answers_must_pair_up_with_prompts(serve_chat):
    judge = load_judge("openai", base_url=serve_chat(lambda body: GOOD), model="grader")
    with pytest.raises(ValueError, match="zip"):
        judge.judge([prompt("p", "how")], [])
