"""Which judges the scoring workers are asked, for what, and in which parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from equilibrate.config.base import JudgeConfig
from equilibrate.evaluation import RefusalMatcher, Verdict, helpfulness_by
from equilibrate.run.judging import PooledJudge, in_pool, on_device
from equilibrate.types import Category, Prompt

RULES = {"name": "refusals", "options": {}}
MODELS = {"name": "cost_model", "options": {"folder": "cost", "reward": "reward", "threads": 2}}


def config(name: str, **options: Any) -> JudgeConfig:
    return JudgeConfig(name=name, options=options)


class Pool:
    """Takes down what it is asked; harm is what the answer says."""

    def __init__(self) -> None:
        self.asked: list[tuple[JudgeConfig, list[str], list[str]]] = []

    def judge(
        self, judge: JudgeConfig, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> list[Verdict]:
        self.asked.append((judge, [prompt.prompt_id for prompt in prompts], list(responses)))
        return RefusalMatcher().judge(prompts, responses)


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(prompt_id=str(row), text="how ?", token_ids=(1,), category=Category.GENERAL)
        for row in range(count)
    ]


@pytest.mark.parametrize(
    ("judge", "is_pooled"),
    [
        (config("cost_model", folder="cost"), True),
        (config("combined", harm=MODELS, refusal=RULES), True),
        (config("combined", harm=RULES, helpfulness=MODELS), True),
        (config("refusals"), False),
        (config(""), False),
        (config("openai", model="m"), False),
        # Keys and networks are the driver's.
        (config("combined", harm=MODELS, refusal={"name": "openai", "options": {}}), False),
    ],
)
def test_models_judge_in_the_pool_and_nothing_else_does(
    judge: JudgeConfig, is_pooled: bool
) -> None:
    rules = RefusalMatcher()
    found = in_pool(rules, judge, Pool(), at_once=8)
    assert isinstance(found, PooledJudge) is is_pooled
    assert is_pooled or found is rules
    assert (found.name, helpfulness_by(found)) == (rules.name, helpfulness_by(rules))


def test_answers_go_in_parts_and_come_back_in_order() -> None:
    pool = Pool()
    judge = in_pool(RefusalMatcher(), config("cost_model", folder="cost"), pool, at_once=3)
    said = ["yes", "I cannot", "yes", "yes", "I cannot", "yes", "yes"]
    verdicts = judge.judge(prompts(7), said)
    assert [verdict.refused for verdict in verdicts] == [word == "I cannot" for word in said]
    assert [ids for _, ids, _ in pool.asked] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert [word for _, _, words in pool.asked for word in words] == said
    assert judge.judge([], []) == []


def test_workers_are_told_whole_paths_and_put_models_on_their_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = Pool()
    given = config("combined", harm=MODELS, refusal=RULES)
    in_pool(RefusalMatcher(), given, pool, at_once=8).judge(prompts(1), ["yes"])
    options = on_device(pool.asked[0][0], "cuda")
    there = {"folder": str(tmp_path / "cost"), "reward": str(tmp_path / "reward"), "threads": 2}
    assert options["harm"] == {"name": "cost_model", "options": {"device": "cuda", **there}}
    assert options["refusal"] == RULES
    chosen = config("cost_model", folder="cost", device="cpu")
    assert on_device(chosen, "cuda") == {"folder": "cost", "device": "cpu"}
    assert on_device(config("refusals"), "cuda") == {}
