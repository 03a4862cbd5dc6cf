from __future__ import annotations

import ast
import dataclasses
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equilibrate import errors
from equilibrate.types import (
    Category,
    FinishReason,
    Prompt,
    PromptBatch,
    Rollout,
    ScoredRollout,
    UpdateMetrics,
    Weights,
    is_unsafe,
)


def make_rollout(**overrides: Any) -> Rollout:
    arguments: dict[str, Any] = {
        "prompt_id": "p",
        "copy": 1,
        "category": Category.MHD,
        "policy_version": 3,
        "token_ids": np.array([5, 6, 7, 2], np.int64),
        "response_mask": np.array([False, False, True, True]),
        "rollout_log_probs": np.array([0, 0, -1.2, -0.1], np.float32),
        "finish_reason": FinishReason.STOP,
    } | overrides
    return Rollout(**arguments)


def make_scored() -> ScoredRollout:
    return ScoredRollout(
        rollout=make_rollout(),
        reward=1.0,
        cost=-0.5,
        token_rewards=np.zeros(4, np.float32),
        token_costs=np.ones(4, np.float32),
        ref_log_probs=np.zeros(4, np.float32),
    )


def make_prompt() -> Prompt:
    return Prompt(prompt_id="p", text="\u00e4", token_ids=(5, 6), category=Category.EHD)


def assert_equal(left: Any, right: Any) -> None:
    """Field by field: `==` of records with arrays is ambiguous."""
    assert type(left) is type(right)
    if dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            assert_equal(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    else:
        assert left == right


RECORDS = [
    make_prompt(),
    PromptBatch(iteration=2, prompts=(make_prompt(),), copies=4),
    make_rollout(),
    make_scored(),
    UpdateMetrics(values={"kl": 0.1}, skipped=True),
    Weights(version=4, reference="path"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_survive_pickling(record: Any) -> None:
    assert_equal(pickle.loads(pickle.dumps(record)), record)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_are_frozen_without_other_attributes(record: Any) -> None:
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, None)
    assert not hasattr(record, "__dict__")


@pytest.mark.parametrize("name", ["response_mask", "rollout_log_probs"])
def test_rollout_arrays_share_one_length(name: str) -> None:
    with pytest.raises(ValueError, match=r"rollout 'p': .* must share one shape \[L\].*\(3,\)"):
        make_rollout(**{name: np.zeros(3)})


def test_rollout_arrays_have_one_axis() -> None:
    two = np.zeros((1, 4))
    with pytest.raises(ValueError, match="must share one shape"):
        make_rollout(token_ids=two, response_mask=two, rollout_log_probs=two)


def test_safety_classes() -> None:
    assert {category for category in Category if category.is_safety} == {"EHD", "IHD", "MHD"}


def test_only_length_is_truncated() -> None:
    assert FinishReason.LENGTH.is_truncated
    assert not FinishReason("stop").is_truncated


def test_categories_are_their_names_in_text_and_json() -> None:
    assert f"{Category.EHD}" == "EHD"
    assert Category("BORDERLINE") is Category.BORDERLINE
    assert pickle.loads(pickle.dumps(Category.IHD)) is Category.IHD


@pytest.mark.parametrize(
    ("error", "code", "builtin"),
    [
        (errors.EquilibrateError, 1, Exception),
        (errors.ConfigError, 2, ValueError),
        (errors.DataError, 3, ValueError),
        (errors.ResourceError, 4, RuntimeError),
        (errors.WorkerLostError, 4, errors.ResourceError),
        (errors.NumericsError, 5, ArithmeticError),
        (errors.ParityError, 5, errors.NumericsError),
    ],
)
def test_errors_survive_pickling_with_their_exit_code(
    error: type[errors.EquilibrateError], code: int, builtin: type[Exception]
) -> None:
    again = pickle.loads(pickle.dumps(error("key (1) must be 2")))
    assert type(again) is error
    assert str(again) == "key (1) must be 2"
    assert isinstance(again, builtin)
    assert error.exit_code == code


def test_unsafe_is_strictly_above_zero() -> None:
    assert [is_unsafe(cost) for cost in (-1.0, 0.0, 1e-9)] == [False, False, True]
    assert is_unsafe(np.array([-1.0, 0.0, 2.0])).tolist() == [False, False, True]


def divisions_by_one_plus(tree: ast.AST) -> int:
    """As in (R - lambda C) / (1 + lambda)."""
    return sum(
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.BinOp)
        and isinstance(node.right.op, ast.Add)
        and isinstance(node.right.left, ast.Constant)
        and node.right.left.value == 1
        and isinstance(node.left, ast.BinOp)
        and isinstance(node.left.op, ast.Sub)
        for node in ast.walk(tree)
    )


def costs_against_zero(tree: ast.AST) -> int:
    """Comparisons of anything called cost with 0."""
    return sum(
        isinstance(node, ast.Compare)
        and "cost" in ast.unparse(node.left)
        and isinstance(node.ops[0], ast.Gt | ast.GtE | ast.Lt | ast.LtE)
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value == 0
        for node in ast.walk(tree)
    )


def test_one_combination_and_one_boundary_of_safety() -> None:
    root = Path(__file__).parents[2]
    for count in (divisions_by_one_plus, costs_against_zero):
        found = {
            path.relative_to(root).as_posix(): count(ast.parse(path.read_text()))
            for folder in ("equilibrate", "actors", "benchmarks", "deploy")
            for path in (root / folder).rglob("*.py")
        }
        assert {name for name, times in found.items() if times} == {"equilibrate/types.py"}
        assert found["equilibrate/types.py"] == 1


@pytest.mark.parametrize(
    ("field", "model"),
    [
        ("reward", "reward"),
        ("token_rewards", "reward"),
        ("cost", "cost"),
        ("token_costs", "cost"),
        ("ref_log_probs", "reference"),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_broken_number_is_found_with_its_model(field: str, model: str, bad: float) -> None:
    scored = make_scored()
    assert scored.broken == ()
    of_tokens = np.array([0.0, 0.0, 0.0, bad], np.float32)
    broken = replace(scored, **{field: bad if field in ("reward", "cost") else of_tokens})
    assert broken.broken == (model,)
