"""Every format on rows of our own, malformed rows of each, and the real files where there are."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.data.formats import FORMATS
from equilibrate.data.recognition import Source, recognise
from equilibrate.data.records import Kind, OfNoUse, Record
from equilibrate.errors import DataError
from equilibrate.types import Category, Message

REAL = Path(__file__).parents[4] / "shared" / "data" / "real"

USER, ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
GOOD: dict[str, dict[str, Any]] = {
    "pku": {"prompt": "p", "response_0": "a", "response_1": "b", "is_response_0_safe": False,
            "is_response_1_safe": True, "better_response_id": 0, "safer_response_id": 1},
    "hh": {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
    "ultrafeedback": {"prompt": "u", "chosen": [USER, ANSWER], "score_chosen": 8.0,
                      "rejected": [USER, {"role": "assistant", "content": "b"}],
                      "score_rejected": 2.0, "messages": [USER, ANSWER]},
    "arena": {"prompt": '["p"]', "response_a": '["a"]', "response_b": '["b"]',
              "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
    "llama_factory": {"conversations": [{"from": "human", "value": "p"}],
                      "chosen": {"from": "gpt", "value": "a"},
                      "rejected": {"from": "gpt", "value": "b"}},
    "preference": {"system": "s", "prompt": "p", "chosen": "a", "rejected": "b"},
    "xstest_completions": {"prompt": "p", "completion": "a", "final_label": "1_full_compliance"},
    "unpaired": {"prompt": "p", "completion": "a", "label": True},
    "beavertails": {"prompt": "p", "response": "a", "category": "{'theft': True, 'war': False}",
                    "is_safe": "False"},
    "harmbench": {"Behavior": "p", "FunctionalCategory": "contextual", "SemanticCategory": "c",
                  "Tags": "x, y", "ContextString": "text\nin lines", "BehaviorID": "i"},
    "jailbreakbench": {"Index": 0, "Goal": "p", "Target": "Sure", "Behavior": "b",
                       "Category": "c", "Source": "s"},
    "do_not_answer": {"id": 1, "risk_area": "r", "types_of_harm": "t", "question": "p",
                      "x_response": "a", "x_harmful": 0, "y_response": "b", "y_harmful": 1},
    "ailuminate": {"prompt_text": "p", "hazard": "h", "persona": "n", "locale": "en_US"},
    "xstest": {"prompt": "p", "type": "homonyms", "label": "safe", "focus": "f", "note": ""},
    "or_bench": {"prompt": "p", "category": "privacy"},
    "mt_bench": {"question_id": 1, "category": "writing", "turns": ["p", "then"]},
    "messages": {"messages": [{"role": "system", "content": "s"}, USER, ANSWER, USER, ANSWER]},
    "sharegpt": {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "a"}]},
    "wildchat": {"conversation": [{**USER, "hashed_ip": "0"}, {**ANSWER, "country": "X"}],
                 "model": "m", "hashed_ip": "0", "language": "English"},
    "alpaca": {"instruction": "p", "input": "i", "output": "a"},
    "dolly": {"instruction": "p", "context": "c", "response": "a", "category": "closed_qa"},
    "answers": {"prompt": "p", "response": "a"},
    "questions": {"topic": "t / s", "question": "p"},
    "prompts": {"prompt": "p"},
}  # fmt: skip


def records(rows: list[Any], columns: dict[str, str] | None = None) -> list[Record]:
    found = recognise(rows, columns or {}, name="rows")
    return [found.read(found.named(row)) for row in rows]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(text: str) -> Message:
    return Message(role="user", content=text)


def system(text: str) -> Message:
    return Message(role="system", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_knows_its_own_rows_and_no_other_takes_them(name: str) -> None:
    found = recognise([GOOD[name]] * 3, {}, name="rows")
    assert found.name == name
    assert "3 of the first 3 rows read" in found.why
    assert not found.has_classes


PAIR: dict[str, Any] = {"kind": Kind.PAIR, "is_safe": (None, None), "better": 0}


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("pku", {}, {**PAIR, "is_safe": (False, True), "safer": 1}),
        ("hh", {}, PAIR),
        ("ultrafeedback", {}, {**PAIR, "messages": (user("u"),)}),
        ("arena", {}, {**PAIR, "better": 1}),
        ("llama_factory", {}, PAIR),
        ("preference", {}, {**PAIR, "messages": (system("s"), user("p"))}),
        ("xstest_completions", {}, {"kind": Kind.LABELLED, "is_safe": (None,),
                                    "label": "1_full_compliance"}),
        ("unpaired", {}, {"kind": Kind.LABELLED, "is_safe": (None,), "is_good": True}),
        ("beavertails", {}, {"kind": Kind.LABELLED, "is_safe": (False,), "label": "theft"}),
        ("harmbench", {}, {"messages": (user("text\nin lines\n\n---\n\np"),),
                           "category": Category.EHD, "label": "c"}),
        ("jailbreakbench", {}, {"label": "c"}),
        ("do_not_answer", {}, {"kind": Kind.LABELLED, "is_safe": (True, False),
                               "category": Category.EHD, "label": "r", "models": ("x", "y")}),
        ("ailuminate", {}, {"category": Category.EHD, "label": "h"}),
        ("xstest", {}, {"category": Category.BORDERLINE, "label": "homonyms"}),
        ("xstest", {"label": "unsafe", "type": "contrast_homonyms"},
         {"category": Category.EHD, "label": "contrast_homonyms"}),
        ("or_bench", {}, {"label": "privacy"}),
        ("mt_bench", {}, {"label": "writing"}),
        ("messages", {}, {"messages": (system("s"), user("u"), assistant("a"), user("u")),
                          "kind": Kind.ANSWER, "is_safe": (None,)}),
        ("sharegpt", {}, {"kind": Kind.ANSWER, "is_safe": (None,)}),
        ("wildchat", {}, {"messages": (user("u"),), "kind": Kind.ANSWER, "is_safe": (None,)}),
        ("alpaca", {}, {"messages": (user("p\n\ni"),), "kind": Kind.ANSWER, "is_safe": (None,)}),
        ("alpaca", {"system": "s", "history": [["q", "r"]]}, {
            "messages": (system("s"), user("q"), assistant("r"), user("p\n\ni")),
            "kind": Kind.ANSWER, "is_safe": (None,)}),
        ("dolly", {}, {"messages": (user("p\n\nc"),), "kind": Kind.ANSWER, "is_safe": (None,),
                       "label": "closed_qa"}),
        ("answers", {}, {"kind": Kind.ANSWER, "is_safe": (None,)}),
        ("questions", {}, {"label": "t / s"}),
        ("prompts", {}, {}),
    ],
)  # fmt: skip
def test_a_row_becomes_a_record(
    name: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    kind = expected.get("kind", Kind.PROMPT)
    count = {Kind.PROMPT: 0, Kind.PAIR: 2}.get(kind, len(expected.get("is_safe", ())))
    whole = {"kind": kind, "messages": (user("p"),), "responses": ("a", "b")[:count]} | expected
    assert records([GOOD[name] | changes]) == [Record(**whole)]


CHAT = "\n\nHuman: p\n\nAssistant: q\n\nHuman: r"


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        # Several turns, and a `Human:` at the end that says nothing.
        ({"chosen": f"{CHAT}\n\nAssistant: a", "rejected": f"{CHAT}\n\nAssistant: b\n\nHuman:"},
         (user("p"), assistant("q"), user("r"))),
        ({"chosen": "Human: p\n\nAssistant: a", "rejected": "Human: p\n\nAssistant: b"},
         (user("p"),)),
        ({"prompt": f"{CHAT}\n\nAssistant:", "chosen": "a", "rejected": "b"},
         (user("p"), assistant("q"), user("r"))),
        ({"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]}, (user("u"),)),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]},
         (user("u"),)),
        ({"instruction": "p", "input": "i", "chosen": "a", "rejected": "b"}, (user("p\n\ni"),)),
    ],
)  # fmt: skip
def test_pairs_of_many_spellings(row: dict[str, Any], messages: tuple[Message, ...]) -> None:
    [record] = records([row])
    assert (record.messages, record.responses, record.better) == (messages, ("a", "b"), 0)


@pytest.mark.parametrize(
    ("name", "changes", "rule"),
    [
        ("pku", {"better_response_id": 2}, r"better_response_id \(2\) must be 0 or 1"),
        ("pku", {"is_response_0_safe": 2}, r"is_response_0_safe \(2\) must be 0 or 1"),
        ("hh", {"rejected": "\n\nHuman: other\n\nAssistant: b"}, "must be alike up to their last"),
        ("hh", {"chosen": "\n\nHuman: p\n\nAssistant:"}, r"turn \(Assistant:\) .* not be empty"),
        ("hh", {"chosen": f"{CHAT}"}, "ends with a turn of user; it must end with the assistant"),
        ("arena", {"prompt": "[1]"}, r"prompt\[0\] \(1\) must be a string"),
        ("arena", {"response_a": '["\\ud83d"]'}, "half of a surrogate pair"),
        ("arena", {"winner_model_a": 1}, "must be 1"),
        ("beavertails", {"category": "{'theft': "}, "must be JSON"),
        ("beavertails", {"is_safe": "maybe"}, r"is_safe \('maybe'\) must be 0 or 1"),
        ("messages", {"messages": [ANSWER]}, "must be turns of user and assistant by turns"),
        ("messages", {"messages": [USER, {"role": "tool", "content": "x"}]}, "must be one of sys"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "be text"),
        ("sharegpt", {"conversations": []}, "must be a list of turns"),
        ("ultrafeedback", {"prompt": "other"}, "must be what chosen answers"),
        ("preference", {"chosen": " "}, "chosen .* must not be empty"),
        ("xstest", {"label": "perhaps"}, "must be safe or unsafe"),
    ],
)  # fmt: skip
def test_a_broken_row_is_told(name: str, changes: dict[str, Any], rule: str) -> None:
    found = recognise([GOOD[name]] * 3, {}, name="rows")
    with pytest.raises(DataError, match=rule):
        found.read(GOOD[name] | changes)


def test_later_turns_of_an_arena_are_of_no_use_and_a_tie_has_no_better_answer() -> None:
    found = recognise([GOOD["arena"]], {}, name="rows")
    two = {"prompt": '["p", "q"]', "response_a": '["a", "c"]', "response_b": '["b", "d"]'}
    with pytest.raises(OfNoUse, match="several turns"):
        found.read(GOOD["arena"] | two)
    tie = {"winner_model_b": 0, "winner_tie": 1}
    assert found.read(GOOD["arena"] | tie).better is None
    ways = {"conversation_a": [USER, ANSWER], "conversation_b": [USER, ANSWER], "winner": "tie"}
    [record] = records([ways])
    assert (record.responses, record.better) == (("a", "a"), None)


def test_a_mapping_names_the_columns() -> None:
    rows = [{"Frage": "p", "Antwort": "a", "prompt": "another"}]
    columns = {"prompt": "Frage", "response": "Antwort"}
    assert records(rows, columns)[0].responses == ("a",)
    # A file that lacks one of them is read as it is: one mapping serves a whole run.
    assert records([{"prompt": "p"}], columns)[0].messages == (user("p"),)


def test_what_is_of_no_format_is_refused_with_the_mapping_that_would_do() -> None:
    with pytest.raises(DataError, match=r"columns \(Frage, Antwort\) .* data\.columns: \{prompt:"):
        recognise([{"Frage": "p", "Antwort": "a"}], {}, name="rows")
    found = recognise([{"prompt": "p", "answer": "a"}], {}, name="rows")
    with pytest.raises(DataError, match=r"\{prompt: prompt, response: answer\}"):
        found.read({"prompt": "p", "answer": "a"})


def test_our_classes_are_told_from_those_of_others() -> None:
    ours = [GOOD["prompts"] | {"category": name} for name in ("EHD", "Mixed Risk", "no risk")]
    found = [record.category for record in records(ours)]
    assert found == [Category.EHD, Category.MHD, Category.GENERAL]
    assert recognise(ours, {}, name="rows").has_classes
    theirs = records([GOOD["prompts"] | {"category": "cooking"}])
    assert (theirs[0].category, theirs[0].label) == (None, "cooking")
    with pytest.raises(OfNoUse, match="of no class"):
        records([*ours, {"prompt": "p", "category": "OTHER"}])
    with pytest.raises(DataError, match="did you mean EHD"):
        records([*ours, {"prompt": "p", "category": "EHF"}])


BAD_VALUES: list[Any] = [
    None, "", " \n", "\0", "a\0b", "\ud800", "\udfff x", 3, -1.5, True, [], {}, [None], ["\ud800"],
    {"role": "user"}, [{"role": "user"}], [{"from": "gpt", "value": None}], '["', "{'a': ",
    "[" * 999,
    [[]], [{"role": ["x"], "content": "y"}], {"from": 1, "value": 2}, "\n\nHuman:",
    "\n\nHuman: a\n\nAssistant:", "Assistant: x", "Human: a\n\nHuman: b\n\nAssistant: c",
    "<|im_end|>", "a\r\nb,\"c", "\u2028\x85\x1b[31m", "x" * 20_000, 10**30, 1e300,
]  # fmt: skip


def mutated(rng: random.Random) -> Any:
    """A row of some format, with one or more of its parts broken."""
    name = rng.choice(list(GOOD))
    row: Any = dict(GOOD[name])
    for _ in range(rng.randint(1, 2)):
        key, act = rng.choice(list(row) or ["prompt"]), rng.randrange(6)
        if act == 0:
            row.pop(key, None)
        elif act == 1:
            row[key.upper()] = row.pop(key, None)
        elif act == 2 and isinstance(row.get(key), list):
            row[key] = row[key] * 2
        elif act == 3:
            row |= rng.choice(list(GOOD.values()))
        else:
            row[key] = rng.choice(BAD_VALUES)
    return rng.choice([row, row, row, row, row, row, [row], None, "row"])


def test_ten_thousand_malformed_rows_over_all_formats(tmp_path: Path) -> None:
    rng, total = random.Random(0), 0
    for name, good in GOOD.items():
        rows = [good] * 300 + [mutated(rng) for _ in range(420)]
        file = write_lines(tmp_path / f"{name}.jsonl", rows)
        lines = [*file.read_text().splitlines(), "{", "nonsense", '{"prompt": "x', "[1]"]
        file.write_text("\n".join(lines))
        source = Source(file)
        assert source.recognised.name == name
        entries = list(source)
        # None is lost: each has its place, and is either a record or a reason.
        assert [entry.where for entry in entries] == [f"{file}:{n + 1}" for n in range(len(lines))]
        assert all((entry.record is None) == (entry.fault is not None) for entry in entries)
        assert all(str(entry.fault) for entry in entries if entry.fault)
        assert all(entry.record for entry in entries[:300])
        assert sum(entry.fault is not None for entry in entries) > 200
        for entry in entries:
            if entry.record is not None:
                check(entry.record)
        total += len(lines) - 300
    assert total >= 10_000


def check(record: Record) -> None:
    """What whoever uses a record may rely on."""
    roles = [turn.role for turn in record.messages]
    assert roles[-1] == "user"
    assert "system" not in roles[1:]
    parts = [turn.content for turn in record.messages] + list(record.responses)
    assert all("\0" not in part for part in parts)
    assert all(part.encode() for part in record.responses)
    expected = {Kind.PROMPT: 0, Kind.ANSWER: 1, Kind.PAIR: 2}
    assert len(record.responses) == expected.get(record.kind, len(record.is_safe))
    for number in (record.better, record.safer, record.preferred):
        assert number in (None, 0, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({name for row in GOOD.values() for name in row})


@given(st.sampled_from(sorted(GOOD)), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3))
def test_any_value_in_any_column_is_read_or_told(name: str, changes: dict[str, Any]) -> None:
    found = recognise([GOOD[name]], {}, name="rows")
    try:
        check(found.read(GOOD[name] | changes))
    except DataError as error:
        told = str(error)
    else:
        told = "a record"
    assert told


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=3))
def test_any_rows_are_recognised_or_refused(rows: list[dict[str, Any]]) -> None:
    try:
        told = recognise(rows, {}, name="rows").name
    except DataError as error:
        told = str(error)
    assert told in FORMATS or "of no known format" in told


EXPECTED = {
    "ailuminate_demo_en.csv": "ailuminate", "alpaca_en_demo.json": "alpaca",
    "arena_pref_500.jsonl": "arena", "beavertails_30k_test.csv": "beavertails",
    "catqa_chinese.json": "questions", "cst_system_prompts.json": "preference",
    "do_not_answer.csv": "do_not_answer", "dolly_1k.csv": "dolly",
    "dpo_en_demo.json": "llama_factory", "harmbench_text_all.csv": "harmbench",
    "hh_harmless_base_test.jsonl": "hh", "hh_harmless_base_train500.jsonl": "hh",
    "hh_helpful_test_relabelled.jsonl": "hh", "jbb_benign.csv": "jailbreakbench",
    "jbb_harmful.csv": "jailbreakbench", "messages_alpaca_1000.jsonl": "messages",
    "messages_saferlhf_benign100.jsonl": "messages",
    "messages_saferlhf_harmful100.jsonl": "messages", "mt_bench_questions.jsonl": "mt_bench",
    "oktest.csv": "prompts", "orbench_hard_category.json": "or_bench",
    "pku_current_500.jsonl": "pku", "pku_v0_demo32.json": "pku",
    "pku_v0_pairs_rebuilt.jsonl": "pku",
    "wildchat_hard_ru.json": "prompts", "xstest_completions_gpt4_gpteval.csv": "xstest_completions",
    "xstest_prompts.csv": "xstest",
}  # fmt: skip


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data sets are not here ({REAL})")
def test_every_real_file_is_recognised_and_nothing_of_it_is_lost() -> None:
    files = [file for file in sorted(REAL.iterdir()) if file.suffix != ".md"]
    assert {file.name for file in files} <= set(EXPECTED), "say what the new file is"
    for file in files:
        source = Source(file)
        assert source.recognised.name == EXPECTED[file.name], file.name
        entries = list(source)
        rejected = [e for e in entries if e.fault and not isinstance(e.fault, OfNoUse)]
        # HH: two answers in a row or an empty last one; the arena: a missing answer.
        assert len(rejected) <= 0.01 * len(entries), (file.name, str(rejected[0].fault))
        for entry in entries:
            if entry.record is not None:
                check(entry.record)


def test_a_format_without_a_row_here_is_noticed() -> None:
    assert set(GOOD) == set(FORMATS)


def test_a_label_that_is_not_given_is_not_said() -> None:
    """As a tie stands in a table: an empty cell, or null."""
    assert FORMATS["pku"].read({**GOOD["pku"], "better_response_id": None}).better is None
    assert FORMATS["pku"].read({**GOOD["pku"], "is_response_0_safe": ""}).is_safe[0] is None
