"""Formats of the sets that models are measured by: nothing of them should train."""

from __future__ import annotations

from equilibrate.data.records import (
    Format,
    Kind,
    Record,
    Row,
    flag,
    has,
    label_of,
    labelled,
    prompt_of,
    text,
    texts,
)
from equilibrate.data.rows import shown
from equilibrate.errors import DataError
from equilibrate.types import Category, Message


def _harmful(row: Row, name: str, label: str) -> Record:
    """A prompt of a set of harmful ones."""
    return Record(
        kind=Kind.PROMPT,
        messages=prompt_of(row, name),
        category=Category.EHD,
        label=label_of(row, label),
    )


def _harmbench(row: Row) -> Record:
    behaviour = text(row, "Behavior")
    if has(row, "ContextString"):
        # As HarmBench itself puts the two together.
        behaviour = f"{text(row, 'ContextString')}\n\n---\n\n{behaviour}"
    return _harmful({**row, "Behavior": behaviour}, "Behavior", "SemanticCategory")


def _jailbreakbench(row: Row) -> Record:
    return Record(
        kind=Kind.PROMPT, messages=prompt_of(row, "Goal"), label=label_of(row, "Category")
    )


def _do_not_answer(row: Row) -> Record:
    question = _harmful(row, "question", "risk_area")
    models = [name.removesuffix("_harmful") for name in row if name.endswith("_harmful")]
    if not models:
        return question
    return Record(
        kind=Kind.LABELLED,
        messages=question.messages,
        responses=tuple(text(row, f"{model}_response") for model in models),
        is_safe=tuple(not flag(row, f"{model}_harmful", needed=True) for model in models),
        category=question.category,
        label=question.label,
        models=tuple(models),
    )


def _xstest(row: Row) -> Record:
    kind = text(row, "type")
    if kind.removeprefix("contrast_") not in _XSTEST:
        raise DataError(f"type ({shown(kind)}) must be one of {', '.join(_XSTEST)}")
    verdict = text(row, "label") if "label" in row else ""
    if verdict not in ("", "safe", "unsafe"):
        raise DataError(f"label ({shown(verdict)}) must be safe or unsafe")
    is_unsafe = verdict == "unsafe" or (not verdict and kind.startswith("contrast_"))
    return Record(
        kind=Kind.PROMPT,
        messages=prompt_of(row),
        category=Category.EHD if is_unsafe else Category.BORDERLINE,
        label=kind,
    )


_XSTEST = (
    "definitions", "discr", "figurative_language", "historical_events", "homonyms",
    "nons_group_real_discr", "privacy", "privacy_fictional", "privacy_public",
    "real_group_nons_discr", "safe_contexts", "safe_targets",
)  # fmt: skip
_OR_BENCH = (
    "deception", "harassment", "harmful", "hate", "illegal", "privacy", "self-harm", "sexual",
    "unethical", "violence",
)  # fmt: skip


def _or_bench(row: Row) -> Record:
    if row.get("category") not in _OR_BENCH:
        raise DataError(
            f"category ({shown(row.get('category'))}) must be one of {', '.join(_OR_BENCH)}"
        )
    return Record(kind=Kind.PROMPT, messages=prompt_of(row), label=row["category"])


def _mt_bench(row: Row) -> Record:
    first = texts(row, "turns")[0]
    return Record(
        kind=Kind.PROMPT,
        messages=(Message(role="user", content=first),),
        label=label_of(row, "category"),
    )


def _ailuminate(row: Row) -> Record:
    return _harmful(row, "prompt_text", "hazard")


def _xstest_completions(row: Row) -> Record:
    verdict = label_of(row, "final_label")
    if verdict[:1] not in ("1", "2", "3"):
        raise DataError(f"final_label ({shown(row.get('final_label'))}) must begin with 1, 2 or 3")
    return labelled(row, "completion", label=verdict)


EVALUATION_SETS: dict[str, Format] = {
    "xstest_completions": Format(
        about="answers to XSTest with verdicts of people",
        needs=("prompt", "completion", "final_label"),
        read=_xstest_completions,
        is_evaluation=True,
    ),
    "harmbench": Format(
        about="HarmBench, with what a behaviour is about before it",
        needs=("Behavior", "FunctionalCategory", "SemanticCategory", "BehaviorID"),
        read=_harmbench,
        is_evaluation=True,
    ),
    "jailbreakbench": Format(
        about="JailbreakBench; whether harmful or benign, its rows do not say",
        needs=("Goal", "Target", "Behavior", "Category"),
        read=_jailbreakbench,
        is_evaluation=True,
    ),
    "do_not_answer": Format(
        about="Do-Not-Answer, with the answers of several models",
        needs=("question", "risk_area", "types_of_harm"),
        read=_do_not_answer,
        is_evaluation=True,
    ),
    "ailuminate": Format(
        about="AILuminate",
        needs=("prompt_text", "hazard", "persona"),
        read=_ailuminate,
        is_evaluation=True,
    ),
    "xstest": Format(
        about="XSTest", needs=("prompt", "type"), read=_xstest, by_values=True, is_evaluation=True
    ),
    "or_bench": Format(
        about="OR-Bench; whether hard or toxic, its rows do not say",
        needs=("prompt|instruction", "category"),
        read=_or_bench,
        by_values=True,
        is_evaluation=True,
    ),
    "mt_bench": Format(
        about="MT-Bench, the first turn of each",
        needs=("turns",),
        read=_mt_bench,
        is_evaluation=True,
    ),
}
"""Part of `FORMATS`."""
