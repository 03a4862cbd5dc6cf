from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate import cli
from equilibrate.data.rows import RejectedRows
from equilibrate.errors import ConfigError, DataError, ResourceError
from equilibrate.fdc import commands
from equilibrate.fdc.agreement import kappa, noise_ceiling
from equilibrate.fdc.classifier import encode, f1_by_class
from equilibrate.fdc.label import (
    Vote,
    Votes,
    decide,
    endpoint_votes,
    labelled_texts,
    read_prompts_to_label,
)
from equilibrate.fdc.local import (
    LocalLabeller,
    calibration_error,
    cross_validate,
    macro_f1_interval,
)
from equilibrate.types import Category
from tests.unit.fdc.test_judge import Scripted, reply

EHD, IHD, MHD, GENERAL = Category.EHD, Category.IHD, Category.MHD, Category.GENERAL
NEEDS_SKLEARN = "scikit-learn comes with the extra `label`"


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def votes(name: str, **said: tuple[Category, float | None]) -> Votes:
    by_text = {text: Vote(category=c, confidence=p) for text, (c, p) in said.items()}
    return Votes(name=name, by_text=by_text, faults={})


def invented(num: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts whose class one word tells: dye is EHD, taunt is IHD."""
    draw = random.Random(seed)
    fill = ["the", "my", "a", "for", "green", "small", "tell", "about", "old", "cat", "me"]
    rows = []
    for i in range(num):
        word, category = [("dye", "EHD"), ("taunt", "IHD")][i % 2]
        words = [*draw.choices(fill, k=6), word, str(i)]
        draw.shuffle(words)
        rows.append({"prompt": " ".join(words), "category": category})
    return rows


def test_kappa_by_hand() -> None:
    # 3 of 4 agree; by chance (2*3 + 2*1) / 16 = 0.5, so (0.75 - 0.5) / 0.5.
    assert kappa("aabb", "aaab") == pytest.approx(0.5)
    assert math.isnan(kappa("aa", "aa"))  # by chance they agree always
    assert kappa("ab", "ba") == -1
    assert math.isnan(kappa("", ""))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1))
def test_kappa_is_symmetric_and_at_most_one(pairs: list[tuple[str, str]]) -> None:
    first, second = zip(*pairs, strict=True)
    assert kappa(first, second) == pytest.approx(kappa(second, first), nan_ok=True)
    assert not kappa(first, second) > 1 + 1e-9
    assert kappa(first, first) == 1 or len(set(first)) == 1


def test_noise_ceiling_by_hand() -> None:
    # Two equal classes agree by chance in 0.5; 0.68 is q^2 = 0.36, q = 0.6.
    found = noise_ceiling({"a": 0.5, "b": 0.5}, 0.68, ["a", "b"])
    assert found.best_f1 == pytest.approx(0.6 + 0.4 * 0.5)
    assert found.second_opinion_f1 == pytest.approx(0.36 + 0.64 * 0.5)
    assert found.accuracy == (0.68, pytest.approx(0.68**0.5))
    assert noise_ceiling({"a": 0.5, "b": 0.5}, 1.0, ["a"]).best_f1 == 1
    with pytest.raises(ValueError, match=r"agreement \(0.4\) must be in \[0.5, 1\]"):
        noise_ceiling({"a": 0.5, "b": 0.5}, 0.4, ["a"])


def test_macro_f1_and_its_difference_by_hand() -> None:
    y = np.array([0, 0, 1, 1])
    said = np.array([0, 1, 1, 1])
    # Class 0: 2/(2+1); class 1: 4/(2+3).
    assert f1_by_class(y, said, 2) == pytest.approx([2 / 3, 0.8])
    value, low, high = macro_f1_interval(y, said[None])
    assert value == pytest.approx((2 / 3 + 0.8) / 2)
    assert low <= value <= high
    assert macro_f1_interval(y, said[None], said[None]) == (0, 0, 0)


def test_calibration_error_by_hand() -> None:
    # Twenty prompts in ten pairs: 0.9 said and half right, or 0.5 said and half right.
    right = np.array([True, False] * 10)
    assert calibration_error(np.full(20, 0.9), right) == pytest.approx(0.4)
    assert calibration_error(np.full(20, 0.5), right) == pytest.approx(0)


def test_who_decides() -> None:
    local, endpoint = votes("local", a=(EHD, 0.6), b=(EHD, 0.6)), votes("endpoint", a=(IHD, 0.7))
    people = votes("people", a=(MHD, None))
    assert decide("a", [local, endpoint]) == ("endpoint", Vote(category=IHD, confidence=0.7), False)
    assert decide("b", [local, endpoint]) == ("local", Vote(category=EHD, confidence=0.6), True)
    assert decide("a", [local, endpoint, people]) == (
        "people",
        Vote(category=MHD, confidence=None),
        True,
    )
    assert decide("c", [local, endpoint, people]) is None


def test_confidence_of_the_endpoint_is_what_it_got_right() -> None:
    class Meter:
        def label(self, texts: Sequence[str]) -> dict[str, Category | DataError]:
            said = {"a": EHD, "b": EHD, "c": EHD, "x": EHD, "y": IHD, "z": DataError("no")}
            return {text: said[text] for text in texts}

        def estimate(self, texts: Sequence[str]) -> Any:
            raise AssertionError

    found = endpoint_votes(Meter(), ["x", "y", "z"], {"a": EHD, "b": EHD, "c": IHD, "z": IHD})
    # EHD: 2 of 3 right, so 3/5; IHD was never said there, so 1/2. A fault counts for none.
    assert {t: v.confidence for t, v in found.by_text.items()} == {"x": 0.6, "y": 0.5}
    assert found.faults == {"z": "no"}
    assert endpoint_votes(Meter(), ["x"]).by_text["x"].confidence is None


def test_rows_keep_their_columns_and_broken_ones_are_told(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl",
        [
            {"prompt": "a", "n": 1},
            {"question": "b"},
            {"prompt": ""},
            {"prompt": "c", "category": "OTHER"},
            {"prompt": "d", "category": {"hate": True}},
            "text",
        ],
    )
    rejected = RejectedRows(file, max_fraction=1.0, file=tmp_path / "rejected.jsonl")
    rows = read_prompts_to_label(file, rejected)
    assert [(r.text, r.given, r.fits_none) for r in rows] == [
        ("a", None, False),
        ("c", None, True),
    ]
    assert [r["where"].rpartition(":")[2] for r in read(tmp_path / "rejected.jsonl")] == list(
        "2356"
    )
    again = read_prompts_to_label(file, RejectedRows(file, max_fraction=1.0), relabel=True)
    assert [r.text for r in again] == ["a", "c", "d"]
    with pytest.raises(DataError, match="needs the key 'prompt'; the row has 'question'"):
        read_prompts_to_label(file, RejectedRows(file))


def test_the_text_is_in_any_column_or_where_the_format_has_it(tmp_path: Path) -> None:
    told = [{"instruction": "a", "category": "EHD", "id": 7}, {"instruction": "b", "category": ""}]
    file = write(tmp_path / "p.jsonl", told)
    for column in ("", "instruction"):
        rows = read_prompts_to_label(file, RejectedRows(file), column=column)
        assert [(r.text, r.given) for r in rows] == [("a", EHD), ("b", None)]
        assert [r.content for r in rows] == told
    turns = {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}
    file = write(tmp_path / "m.jsonl", [turns])
    assert [(r.text, r.content) for r in read_prompts_to_label(file, RejectedRows(file))] == [
        ("c", turns)
    ]
    with pytest.raises(DataError, match="no row has the column 'text'"):
        read_prompts_to_label(file, RejectedRows(file), column="text")


def test_a_text_with_two_classes_teaches_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": t, "category": c} for t, c in (("a", "EHD"), ("a", "IHD"), ("b", "EHD"))]
    file = write(tmp_path / "p.jsonl", rows)
    assert labelled_texts(read_prompts_to_label(file, RejectedRows(file))) == (["b"], [EHD])


def test_too_few_prompts_of_a_class_are_refused() -> None:
    with pytest.raises(DataError, match=r"too few: IHD \(9\)"):
        encode([EHD] * 20 + [IHD] * 9)
    with pytest.raises(DataError, match="must hold two classes"):
        encode([EHD] * 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a labeller"),
        ({"endpoint": "http://x"}, "go together"),
        ({"train": ("t",), "threshold": 1.5}, r"--threshold \(1.5\)"),
        ({"train": ("t",), "estimate": True}, "add --endpoint"),
        ({"people": ("t",), "embed": "m"}, "add --train"),
        ({"train": ("t",), "price": (-1.0, 0.0)}, "two numbers >= 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    asked = commands.LabelOptions(file=tmp_path / "none", out=tmp_path / "out", **options)
    with pytest.raises(ConfigError, match=message):
        commands.label(asked, lambda *_: Scripted({}))
    assert not (tmp_path / "out").exists()


def test_local_labeller_learns_what_one_word_tells() -> None:
    pytest.importorskip("sklearn", reason=NEEDS_SKLEARN)
    rows = invented(60)
    texts, labels = [r["prompt"] for r in rows], [Category(r["category"]) for r in rows]
    worth = cross_validate(texts, labels)
    assert worth.macro_f1[0] > 0.9
    assert worth.num_prompts == 60
    found = LocalLabeller(texts, labels).label(["a small dye", "a small taunt"])
    assert [category for category, _ in found.values()] == [EHD, IHD]
    assert all(0.5 < chance <= 1 for _, chance in found.values())
    again = LocalLabeller(texts, labels)
    assert again.label([]) == {}
    assert again.label(["a small dye"])["a small dye"] == found["a small dye"]

    def embed(some: Sequence[str]) -> np.ndarray:
        return np.array([["dye" in text, "taunt" in text, 0.1] for text in some], np.float32)

    found = LocalLabeller(texts, labels, embed=embed).label(["a dye", "x taunt"])
    assert [category for category, _ in found.values()] == [EHD, IHD]


def mixed_job(tmp_path: Path) -> tuple[commands.LabelOptions, Scripted, list[dict[str, Any]]]:
    """Eight rows for machines, one that came with a class, two that people looked at."""
    train = write(tmp_path / "train.jsonl", invented(40))
    new = invented(8, seed=1)
    rows: list[dict[str, Any]] = [{"prompt": r["prompt"], "id": i} for i, r in enumerate(new)]
    rows += [{"prompt": "told", "category": "MHD"}, {"prompt": "by people"}, {"prompt": "none"}]
    seen = [("by people", "GENERAL"), ("none", "OTHER"), ("not yet", "")]
    flags = {"EHD": reply(True, False), "IHD": reply(False, True)}
    script: dict[str, list[Any]] = {
        r["prompt"]: [flags[r["category"]]] for r in (*new, *read(train))
    }
    options = commands.LabelOptions(
        file=write(tmp_path / "p.jsonl", rows),
        out=tmp_path / "out",
        train=(train,),
        people=(write(tmp_path / "people.jsonl", [{"prompt": t, "category": c} for t, c in seen]),),
        endpoint="http://x",
        model="m",
        price=(1.0, 2.0),
    )
    return options, Scripted(script), rows


def test_the_command_loses_no_row_and_goes_on_after_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason=NEEDS_SKLEARN)
    monkeypatch.setattr("equilibrate.fdc.asking.FIRST_WAIT_SECONDS", 0.0)
    options, endpoint, rows = mixed_job(tmp_path)
    last = rows[7]["prompt"]
    endpoint.script[last] = [ResourceError("429")] * 4
    # The local labeller has a class for it, so the row is not lost; the exit code tells.
    with pytest.raises(ResourceError, match="1 prompt got no answer"):
        commands.label(options, lambda *_: endpoint)
    assert len(read(options.out / "labelled.jsonl")) == 10
    endpoint.asked.clear()
    # IHD in truth, so the two labellers disagree.
    endpoint.script[last] = [reply(True, False)]
    assert commands.label(options, lambda *_: endpoint) == 0
    assert endpoint.asked == [last]
    labelled = read(options.out / "labelled.jsonl")
    assert [r["prompt"] for r in labelled] == [r["prompt"] for r in rows[:-1]]
    assert [r.get("id") for r in labelled[:8]] == list(range(8))
    assert [r["category"] for r in labelled[:7]] == ["EHD", "IHD"] * 3 + ["EHD"]
    assert [(r["labeller"], r["category"]) for r in labelled[8:]] == [
        ("given", "MHD"),
        ("people", "GENERAL"),
    ]
    [left] = read(options.out / "unlabelled.jsonl")
    assert left["prompt"] == "none"
    assert left["where"].endswith(":11")
    assert "fits no class" in left["reason"]
    unsure = read(options.out / "unsure.jsonl")
    assert last in [item["prompt"] for item in unsure]
    assert all(item["category"] == "" for item in unsure)
    summary = json.loads((options.out / "labels.json").read_text())
    assert (summary["num_labelled"], summary["num_unlabelled"]) == (10, 1)
    # 7 of 8 agree: local 4 and 4, endpoint 5 and 3, by chance (4*5 + 4*3) / 64.
    assert summary["kappas"]["local/endpoint"] == pytest.approx((7 / 8 - 0.5) / 0.5)
    assert "to ask: 1 prompt," in capsys.readouterr().out


def test_broken_rows_are_told_and_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "cut\n')
    people = write(tmp_path / "people.jsonl", [{"prompt": "a", "category": "EHD"}])
    arguments = ["fdc", "label", str(file), "--out", str(tmp_path / "o"), "--people", str(people)]
    assert cli.main(arguments) == 3
    assert "1 of 2 rows break a rule" in capsys.readouterr().err
    assert not (tmp_path / "o" / "labelled.jsonl").exists()
    assert cli.main([*arguments, "--max-rejected", "nan"]) == 2
    assert "--max-rejected (nan) must be from 0 to 1" in capsys.readouterr().err
    assert cli.main([*arguments, "--max-rejected", "0.5"]) == 0
    assert "rejected: 1 rows" in capsys.readouterr().out
    with pytest.raises(DataError, match="must hold at least one row"):
        read_prompts_to_label(write(tmp_path / "e.jsonl", []), RejectedRows(file))


def test_a_class_that_came_with_a_row_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "a", "category": "IHD"}])
    options = commands.LabelOptions(
        file=file, out=tmp_path / "out", endpoint="http://x", model="m", relabel=True
    )
    assert commands.label(options, lambda *_: Scripted({"a": [reply(True, True)]})) == 0
    [row] = read(tmp_path / "out" / "labelled.jsonl")
    assert row == {
        "prompt": "a",
        "given_category": "IHD",
        "category": "MHD",
        "confidence": None,
        "labeller": "endpoint",
    }


def test_estimate_asks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    endpoint = Scripted({})
    options = commands.LabelOptions(
        file=file, out=tmp_path / "out", endpoint="http://x", model="m", estimate=True
    )
    assert commands.label(options, lambda *_: endpoint) == 0
    assert "to ask: 2 prompts" in capsys.readouterr().out
    assert endpoint.asked == []


def test_the_command_line_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fdc", "label", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "needs a labeller" in capsys.readouterr().err
    assert cli.main([*arguments, "--people", str(tmp_path / "none.jsonl")]) == 3
    assert "none.jsonl: cannot be read" in capsys.readouterr().err
