"""One split over all data sets: by prompt, whichever file holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibrate.data.records import Kind, Record
from equilibrate.data.split import file_of, part_of, parts_of, split
from equilibrate.errors import ConfigError, DataError
from equilibrate.types import Category, as_conversation

PARTS = {"train": 0.5, "test": 0.5}


def _write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _split(out: Path, *files: str, shape: str = "answers", parts: dict[str, float] = PARTS, **more):
    lines: list[str] = []
    options = {"seed": 0, "columns": {}, "max_rejected_fraction": 0.0} | more
    split([file_of(file) for file in files], parts, out, shape=shape, say=lines.append, **options)
    return lines


def _read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _pair(prompt: str, first: tuple[str, bool], other: tuple[str, bool], **more: object):
    return {
        "prompt": prompt,
        "response_0": first[0],
        "response_1": other[0],
        "is_response_0_safe": first[1],
        "is_response_1_safe": other[1],
        "better_response_id": 0,
        "safer_response_id": 1,
    } | more


def _single(prompt: str, response: str, is_safe: bool) -> dict[str, object]:
    return {"prompt": prompt, "response": response, "is_safe": is_safe, "category": "{}"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """20 prompts as pairs, and 10 of them, in capitals and with a full stop, as single answers."""
    pairs = [
        _pair(f"how to do {word}", ("a", False), ("b", True)) for word in "abcdefghijklmnopqrst"
    ]
    singles = [_single(f"How to  do {word.upper()}.", "c", True) for word in "abcdefghij"]
    return _write(tmp_path / "pairs.jsonl", pairs), _write(tmp_path / "singles.jsonl", singles)


def test_no_prompt_is_in_two_parts_whatever_its_case_spacing_and_punctuation(
    files: tuple[str, str], tmp_path: Path
) -> None:
    _split(tmp_path / "out", *files)

    train, test = (
        {
            row["prompt"].casefold().strip(".").replace("  ", " ")
            for row in _read(tmp_path / "out" / f"{name}.jsonl")
        }
        for name in PARTS
    )
    assert train
    assert test
    assert not train & test
    assert len(train | test) == 20


def test_answers_of_pairs_and_single_ones_come_one_by_one_with_their_labels(
    files: tuple[str, str], tmp_path: Path
) -> None:
    lines = _split(tmp_path / "out", *files)

    rows = [row for name in PARTS for row in _read(tmp_path / "out" / f"{name}.jsonl")]
    assert len(rows) == 20 * 2 + 10
    assert {(row["response"], row["is_safe"]) for row in rows} == {
        ("a", False),
        ("b", True),
        ("c", True),
    }
    assert any("pairs.jsonl: pku; train" in line for line in lines)


def test_a_prompt_stays_in_its_part_when_files_are_added(
    files: tuple[str, str], tmp_path: Path
) -> None:
    _split(tmp_path / "one", files[0])
    _split(tmp_path / "two", *files)

    for name in PARTS:
        one, two = (_read(tmp_path / out / f"{name}.jsonl") for out in ("one", "two"))
        assert two[: len(one)] == one


def test_an_answer_that_is_safe_in_one_row_and_unsafe_in_another_is_left_out(
    tmp_path: Path,
) -> None:
    file = _write(
        tmp_path / "rows.jsonl",
        [
            _single("p", "a", True),
            _single("p", "a", False),
            _single("p", "b", True),
            _single("q", "a", False),
        ],
    )

    lines = _split(tmp_path / "out", file, parts={"all": 1.0})

    rows = _read(tmp_path / "out" / "all.jsonl")
    assert [(row["prompt"], row["response"]) for row in rows] == [("p", "b"), ("q", "a")]
    assert "left out: 2 safe in one row and unsafe in another" in lines


def test_pairs_keep_what_they_say_and_copies_come_once(tmp_path: Path) -> None:
    pair = _pair("p", ("a", False), ("b", True))
    file = _write(tmp_path / "rows.jsonl", [pair, pair])

    lines = _split(tmp_path / "out", file, shape="pairs", parts={"all": 1.0})

    assert _read(tmp_path / "out" / "all.jsonl") == [pair]
    assert "left out: 1 a second copy" in lines


def test_prompts_have_the_class_of_their_file_and_a_conversation_stays_one(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    file = _write(tmp_path / "rows.jsonl", [{"prompt": "p"}, {"prompt": turns}])

    _split(tmp_path / "out", f"EHD={file}", shape="prompts", parts={"all": 1.0})

    assert _read(tmp_path / "out" / "all.jsonl") == [
        {"prompt": "p", "category": "EHD"},
        {"prompt": turns, "category": "EHD"},
    ]


def test_the_same_command_again_changes_nothing_and_another_split_is_refused(
    files: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _split(out, *files)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    _split(out, *files)

    with pytest.raises(ConfigError, match=r"train\.jsonl: is there and differs"):
        _split(out, *files, seed=1)

    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_broken_row_stops_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = _write(tmp_path / "rows.jsonl", [_single("p", "a", True), _single("q", "a", 7)])

    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        _split(tmp_path / "out", file, parts={"all": 1.0})

    assert not (tmp_path / "out").exists()


def test_broken_rows_within_the_limit_are_counted(tmp_path: Path) -> None:
    rows = [_single(f"p{row}", "a", True) for row in range(9)]
    file = _write(tmp_path / "rows.jsonl", [*rows, _single("q", "a", 7)])
    parts = {"all": 1.0}
    lines = _split(tmp_path / "out", file, parts=parts, max_rejected_fraction=0.2)
    assert next(line for line in lines if "all 9" in line).endswith("; 1 row broken and left out")


def test_a_part_without_rows_is_refused_with_what_was_left_out(tmp_path: Path) -> None:
    file = _write(tmp_path / "rows.jsonl", [{"prompt": "p"}, {"prompt": "q"}])
    with pytest.raises(DataError, match=r"hold no row \(left out: 2 without an answer\)"):
        _split(tmp_path / "new" / "out", file)
    with pytest.raises(DataError, match="would hold no row; give more data"):
        _split(tmp_path / "new" / "out", file, shape="prompts", parts={"a": 1.0, "b": 1e-6})
    assert not (tmp_path / "new").exists()


def test_an_empty_file_among_others_is_refused(files: tuple[str, str], tmp_path: Path) -> None:
    empty = _write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl: the data set is empty"):
        _split(tmp_path / "out", files[0], empty)


def test_a_folder_of_other_parts_or_within_an_input_is_refused(
    files: tuple[str, str], tmp_path: Path
) -> None:
    _split(tmp_path / "out", *files)
    with pytest.raises(ConfigError, match=r"test\.jsonl: is there and is no part of .* \(train\)"):
        _split(tmp_path / "out", *files, parts={"train": 1.0})
    for out in (tmp_path, tmp_path / "new"):
        with pytest.raises(ConfigError, match=r"--out .* must not lie in .* which is read"):
            _split(out, str(tmp_path))


def test_the_order_of_the_parts_changes_nothing(files: tuple[str, str], tmp_path: Path) -> None:
    texts = ["train=0.6", "test=0.3", "judge=0.1"]
    _split(tmp_path / "one", *files, parts=parts_of(texts))
    _split(tmp_path / "two", *files, parts=parts_of(texts[::-1]))
    for name in ("train", "test", "judge"):
        one, two = (_read(tmp_path / out / f"{name}.jsonl") for out in ("one", "two"))
        assert one == two


def test_a_file_is_given_once_by_any_path(files: tuple[str, str], tmp_path: Path) -> None:
    other = f"{tmp_path}/./pairs.jsonl"
    for twice in (files[0], f"EHD={files[0]}", other):
        with pytest.raises(ConfigError, match=r"pairs\.jsonl stands there twice.*name each file"):
            _split(tmp_path / "out", files[0], twice)


def test_a_copy_in_another_class_is_counted_as_one(tmp_path: Path) -> None:
    one = _write(tmp_path / "one.jsonl", [{"prompt": "p"}, {"prompt": "p"}])
    two = _write(tmp_path / "two.jsonl", [{"prompt": "p"}])

    lines = _split(
        tmp_path / "out", f"EHD={one}", f"IHD={two}", shape="prompts", parts={"all": 1.0}
    )

    assert _read(tmp_path / "out" / "all.jsonl") == [{"prompt": "p", "category": "EHD"}]
    assert "left out: 1 a second copy" in lines
    assert "left out: 1 a copy in another class than the first" in lines


def test_copies_of_a_pair_come_once_and_contradictory_ones_not_at_all(tmp_path: Path) -> None:
    pair = _pair("p", ("a", False), ("b", True), safer_response_id=1)
    swapped = _pair("p", ("b", True), ("a", False), better_response_id=1, safer_response_id=0)
    other = _pair("q", ("a", False), ("b", True))
    opposite = _pair("q", ("b", True), ("a", False), safer_response_id=0)  # better is b now
    file = _write(tmp_path / "rows.jsonl", [pair, swapped, other, opposite])

    lines = _split(tmp_path / "out", file, shape="pairs", parts={"all": 1.0})

    assert _read(tmp_path / "out" / "all.jsonl") == [pair]
    assert "left out: 1 a second copy" in lines
    assert "left out: 2 labelled otherwise in another row" in lines


def test_the_unlabelled_side_of_a_pair_is_counted(tmp_path: Path) -> None:
    file = _write(tmp_path / "rows.jsonl", [_pair("p", ("a", False), ("b", None))])
    assert "left out: 1 without a label of safety" in _split(
        tmp_path / "out", file, parts={"all": 1.0}
    )


def test_prompts_keep_what_train_knows_them_by(tmp_path: Path) -> None:
    one = [{"id": 0, "prompt": "p", "cell": "c", "part": "new"}, {"prompt": "q", "cell": None}]
    two = [{"id": 0, "prompt": "r"}, {"id": 0, "prompt": "s"}, {"id": 1, "prompt": "t", "cell": 3}]
    files = _write(tmp_path / "one.jsonl", one), _write(tmp_path / "two.jsonl", two)

    _split(tmp_path / "out", *files, shape="prompts", parts={"all": 1.0}, max_rejected_fraction=0.7)

    assert _read(tmp_path / "out" / "all.jsonl") == [
        {"prompt": "p", "cell": "c", "part": "new", "id": "0"},
        {"prompt": "q"},
        {"prompt": "r", "id": "2:0"},
    ]
    with pytest.raises(DataError, match=r"two\.jsonl:2: id .* unique(.|\n)*:3: cell \(3\)"):
        _split(tmp_path / "new", *files, shape="prompts", parts={"all": 1.0})


@pytest.mark.parametrize(
    "text",
    ["train", "train=0", "train=x", "=0.5", "train=-1", "a b=1", "x=inf", "a=1e308", "a=1e-9"],
)
def test_what_is_no_part_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a name and a share"):
        parts_of([text])


def test_no_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="--parts is given without any"):
        parts_of([])


def test_shares_need_not_add_up_to_one() -> None:
    assert parts_of(["a=3", "b=1"]) == {"a": 0.75, "b": 0.25}


def test_a_class_before_the_file_and_a_file_with_an_equals_sign() -> None:
    assert file_of("EHD=x.csv").category is Category.EHD
    assert file_of("run=1.csv").file == "run=1.csv"


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1), st.integers(0, 9))
def test_every_prompt_has_a_part_whatever_it_says(text: str, seed: int) -> None:
    record = Record(kind=Kind.PROMPT, messages=as_conversation(text))
    assert part_of(record, PARTS, seed) == part_of(record, PARTS, seed)
    assert part_of(record, PARTS, seed) in PARTS


def test_parts_are_as_large_as_their_shares() -> None:
    records = [
        Record(
            kind=Kind.PROMPT,
            messages=as_conversation(
                f"word{chr(97 + n % 26)} {chr(97 + n // 26 % 26)} {chr(97 + n // 676)}"
            ),
        )
        for n in range(4000)
    ]
    share = sum(part_of(record, {"a": 0.2, "b": 0.8}, 0) == "a" for record in records) / 4000
    # 4,000 draws: 0.2 +- 4 standard errors of 0.0063.
    assert abs(share - 0.2) < 0.026
