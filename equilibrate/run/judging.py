"""Cost and reward models as the judge, in the scoring workers: the driver may have no GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from equilibrate.config.base import JudgeConfig
from equilibrate.evaluation import Judge, Verdict, helpfulness_by
from equilibrate.evaluation.judge_plugins import COMBINED, load_judge, parts_of
from equilibrate.learning.scoring import ScoringWorker
from equilibrate.types import Prompt

BY_MODELS = "cost_model"
_ANYWHERE = (BY_MODELS, "refusals")
"""Judges that need nothing of the driver: no key, no network, no package of the user's."""


class JudgingScorer(ScoringWorker):
    """A scoring worker that judges too, by models which it loads when they are first asked for."""

    _judge: tuple[JudgeConfig, Judge] | None = None

    def judge(
        self, judge: JudgeConfig, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> list[Verdict]:
        """One verdict per prompt, in order."""
        if self._judge is None or self._judge[0] != judge:
            options = on_device(judge, str(self._accelerator.torch_device))
            self._judge = judge, load_judge(judge.name, **options)
        return self._judge[1].judge(prompts, responses)


class JudgePool(Protocol):
    def judge(
        self, judge: JudgeConfig, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> list[Verdict]: ...


class PooledJudge:
    """A judge of the driver's settings whose verdicts the scoring workers give."""

    def __init__(self, judge: Judge, config: JudgeConfig, pool: JudgePool, *, at_once: int) -> None:
        """Args:
        judge: the same one here, for its names.
        at_once: answers of one call, which has the deadline of scoring so many.
        """
        self.name, self.helpfulness_by = judge.name, helpfulness_by(judge)
        self._config, self._pool, self._at_once = config, pool, at_once

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Verdict]:
        found: list[Verdict] = []
        for start in range(0, len(prompts), self._at_once):
            part = slice(start, start + self._at_once)
            found += self._pool.judge(self._config, prompts[part], responses[part])
        return found


def in_pool(judge: Judge, config: JudgeConfig, pool: JudgePool, *, at_once: int) -> Judge:
    """The judge, in the scoring workers if models give its verdicts and nothing else is asked."""
    names = {part.name for part in parts_of(config.name, config.options).values()}
    if BY_MODELS not in names or not names <= set(_ANYWHERE):
        return judge
    return PooledJudge(judge, _with_whole_paths(config), pool, at_once=at_once)


def on_device(judge: JudgeConfig, device: str) -> dict[str, Any]:
    """The options of a judge, its models on this device unless they say where they are."""
    return _changed(judge, lambda options: {"device": device, **options})


def _with_whole_paths(judge: JudgeConfig) -> JudgeConfig:
    """Workers may run elsewhere."""

    def whole(options: Mapping[str, Any]) -> dict[str, Any]:
        given = {key: options[key] for key in ("folder", "reward") if options.get(key)}
        return {**options, **{key: str(Path(path).resolve()) for key, path in given.items()}}

    return judge.model_copy(update={"options": _changed(judge, whole)})


def _changed(
    judge: JudgeConfig, change: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """The options, changed where they are of a `cost_model`."""
    if judge.name != COMBINED:
        return change(judge.options) if judge.name == BY_MODELS else dict(judge.options)
    return {
        role: {"name": part.name, "options": _changed(part, change)}
        for role, part in parts_of(judge.name, judge.options).items()
    }
