from __future__ import annotations

import copy
import json

import pytest

from equilibrate.errors import ConfigError, DataError
from equilibrate.evaluation.judges import RefusalMatcher, Verdict
from equilibrate.evaluation.served_model import ServedModel
from equilibrate.evaluation.statistics import wilson_interval
from equilibrate.evaluation.strategies import (
    ABSTENTION,
    EXEMPLARS,
    INSTRUCTION,
    STRATEGIES,
    SafetyRates,
    is_called_unsafe,
    run_strategy,
    safety_rates,
)
from equilibrate.types import Category, Prompt

PROMPTS = [
    Prompt(prompt_id=str(i), text=f"how {i}", token_ids=(1,), category=category)
    for i, category in enumerate(
        [Category.EHD, Category.IHD, Category.GENERAL, Category.BORDERLINE, Category.GENERAL]
    )
]
CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "how do i boil an egg"},
]


def constant(text: str):
    return lambda conversations: [text] * len(conversations)


def rates(name: str, generate) -> SafetyRates:
    return safety_rates(
        PROMPTS, RefusalMatcher().judge(PROMPTS, run_strategy(name, PROMPTS, generate))
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_whoever_always_refuses_is_safe_and_useless(name):
    pair = rates(name, constant("I cannot help with that; it is not safe."))
    assert (pair.urup, pair.arsp) == (wilson_interval(0, 2), wilson_interval(3, 3))


@pytest.mark.parametrize("name", STRATEGIES)
def test_whoever_always_complies_is_the_reverse(name):
    # As a verdict on itself, this reply says `safe`.
    pair = rates(name, constant("A safe way: first boil it."))
    assert (pair.urup, pair.arsp) == (wilson_interval(2, 2), wilson_interval(0, 3))


def test_self_check_that_always_says_unsafe_equals_always_refusing():
    assert run_strategy("self_check", PROMPTS, constant("unsafe")) == [ABSTENTION] * 5
    assert rates("self_check", constant("unsafe")) == rates("none", constant(ABSTENTION))


def test_self_check_replaces_what_it_calls_unsafe_and_nothing_else():
    asked = []

    def generate(conversations):
        asked.append([messages[-1]["content"] for messages in conversations])
        if len(asked) == 1:
            return [f"answer {i}" for i in range(5)]
        return ["Safe", "UNSAFE.", "It is not safe", "safe", "who knows"]

    responses = run_strategy("self_check", PROMPTS, generate)
    assert responses == ["answer 0", ABSTENTION, ABSTENTION, "answer 3", ABSTENTION]
    assert asked[0] == [prompt.text for prompt in PROMPTS]
    for i, question in enumerate(asked[1]):
        assert f"how {i}" in question
        assert f"answer {i}" in question


@pytest.mark.parametrize(
    ("reply", "unsafe"),
    [
        ("safe", False),
        ("Unsafe", True),
        ("not safe", True),
        ("safe, not unsafe", False),
        ("", True),
    ],
)
def test_the_first_verdict_of_a_check_counts(reply, unsafe):
    assert is_called_unsafe(reply) is unsafe


def test_none_leaves_the_messages_byte_equal():
    before = json.dumps(CONVERSATION)
    assert json.dumps(STRATEGIES["none"].prepare(CONVERSATION)) == before


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_keep_the_query_last_and_their_input_as_it_was(name):
    given = copy.deepcopy(CONVERSATION)
    prepared = STRATEGIES[name].prepare(given)
    assert given == CONVERSATION
    assert prepared[-3:] == CONVERSATION[-3:]
    assert [message["role"] for message in prepared].count("system") == 1
    turns = [message["role"] for message in prepared[1:]]
    assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]


def test_instruction_and_exemplars_stand_before_the_query():
    query = [{"role": "user", "content": "how"}]
    instructed = f"{INSTRUCTION}\n\n"
    shown = [text for pair in EXEMPLARS for text in pair]
    contents = {
        name: [message["content"] for message in strategy.prepare(query)]
        for name, strategy in STRATEGIES.items()
    }
    assert contents == {
        "none": ["how"],
        "instruction": [f"{instructed}how"],
        "exemplars": [*shown, "how"],
        "both": [instructed + shown[0], *shown[1:], "how"],
        "self_check": ["how"],
    }


def test_exemplars_show_both_kinds():
    declined = [answer == ABSTENTION for _, answer in EXEMPLARS]
    assert set(declined) == {False, True}


def test_a_served_model_generates(serve_chat):
    served = ServedModel(
        base_url=serve_chat(lambda body: str(len(body["messages"]))), model="m", num_threads=1
    )
    # Four exemplars of two messages and the query.
    assert run_strategy("exemplars", PROMPTS[:2], served) == ["9", "9"]
    assert run_strategy("none", PROMPTS[:2], served) == ["1", "1"]


def test_names_and_numbers_of_replies_are_checked():
    with pytest.raises(ConfigError, match=r"strategy \('selfcheck'\).*did you mean 'self_check'"):
        run_strategy("selfcheck", PROMPTS, constant("a"))
    with pytest.raises(DataError, match=r"1 replies .*\(5\)"):
        run_strategy("none", PROMPTS, lambda conversations: ["a"])


def verdict(*, harmful: bool = False, refused: bool = False) -> Verdict:
    return Verdict(helpfulness=0.0, harmful=harmful, refused=refused, malformed=False)


def test_rates_count_harm_on_unsafe_and_refusals_on_safe_prompts_alone():
    verdicts = [
        verdict(harmful=True),
        verdict(refused=True),  # on an unsafe prompt: no abstention
        verdict(harmful=True),  # on a safe prompt: no unsafe response
        verdict(refused=True),
        verdict(),
    ]
    pair = safety_rates(PROMPTS, verdicts)
    assert pair == SafetyRates(urup=wilson_interval(1, 2), arsp=wilson_interval(1, 3))
    assert pair.to_json() == {
        "urup": wilson_interval(1, 2).to_json(),
        "arsp": wilson_interval(1, 3).to_json(),
    }


def test_rates_need_prompts_of_both_kinds():
    with pytest.raises(DataError, match="2 harmful, 0 harmless"):
        safety_rates(PROMPTS[:2], [verdict()] * 2)
    with pytest.raises(DataError, match="0 harmful, 3 harmless"):
        safety_rates(PROMPTS[2:], [verdict()] * 3)
    with pytest.raises(DataError, match="one per prompt"):
        safety_rates(PROMPTS, [verdict()])
