"""What the survey counts, on rows that a person can count, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equilibrate import cli
from equilibrate.data.rows import RejectedRows
from equilibrate.data.survey import Survey, characters, overlaps, survey, words_of

REAL = Path(__file__).parents[4] / "shared" / "data" / "real"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(prompt: str, first: bool, other: bool, better: int, safer: int) -> dict[str, Any]:
    return {"prompt": prompt, "response_0": "aa", "response_1": "bbbb",
            "is_response_0_safe": first, "is_response_1_safe": other,
            "better_response_id": better, "safer_response_id": safer}  # fmt: skip


def surveyed(path: Path) -> Survey:
    return survey(path, lengths=characters, rejected=RejectedRows(path))


PAIRS = [
    pair("Say A.", True, True, 0, 0),
    pair("say a!", False, False, 0, 1),
    pair("q", False, True, 0, 1),
    pair("q", True, False, 0, 1),
    pair("q", True, False, 0, 1),
]


def test_labels_are_held_against_one_another(tmp_path: Path) -> None:
    found = surveyed(write(tmp_path / "pairs.jsonl", *PAIRS))
    assert found.conflicts == {
        "both answers are unsafe": 1,
        "the better answer is unsafe": 2,
        "the better answer is unsafe and the other safe": 1,
        "the safer answer is unsafe and the other safe": 2,
        "the better answer is not the safer one": 4,
    }
    # Both answers to q have both labels; "Say A." and "say a!" are two prompts.
    assert sorted(found.verdicts.values()) == [1, 1, 2, 2, 3, 3]
    assert found.taught == {"helpful": 5, "safer": 5, "safe_first": 4}
    assert (found.num_rows, found.kinds) == (5, {"pairs": 5})
    assert list(found.prompt_lengths) == [6, 6, 1, 1, 1]
    assert list(found.answer_lengths) == [2, 4] * 5


def test_copies_and_near_copies(tmp_path: Path) -> None:
    found = surveyed(write(tmp_path / "pairs.jsonl", *PAIRS))
    assert sum(count - 1 for count in found.rows_seen.values()) == 2
    assert (len(found.prompts_seen), len(found.near_prompts)) == (3, 2)
    assert words_of("Room 12, please!") == words_of("room 7 PLEASE") == "room 0 please"
    assert words_of("room please") != words_of("room 7 please")


def test_what_two_sets_share(tmp_path: Path) -> None:
    sets = [
        surveyed(write(tmp_path / f"{name}.jsonl", *({"prompt": prompt} for prompt in prompts)))
        for name, prompts in (("one", ["Hello  you", "b"]), ("two", ["hello you", "B?"]))
    ]
    one, two = (str(tmp_path / f"{name}.jsonl") for name in ("one", "two"))
    assert overlaps(sets, []) == [f"{one} and {two} share 1 prompts (2 by words alone)"]
    [line] = overlaps(sets[:1], sets[1:])
    assert line.endswith("; fit and train refuse the two together")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = {"conversation": [{"role": "user", "content": "q"}], "hashed_ip": "0", "country": "X"}
    files = [write(tmp_path / "pairs.jsonl", *PAIRS), write(tmp_path / "chats.jsonl", chat, {})]
    listed = tmp_path / "rejected.jsonl"
    command = ["data", *map(str, files), "--rejected", str(listed)]
    assert cli.main(command) == 3
    said = capsys.readouterr().out
    assert "recognised  pku: PKU-SafeRLHF, both generations: columns prompt, response_0" in said
    assert "by helpful 5, by safer 5, by safe_first 4" in said
    assert "personal    country, hashed_ip: dropped" in said
    assert f"{files[0]} and {files[1]} share 1 prompts (1 by words alone)" in said
    assert "1 of 2 rows break a rule, and --max-rejected-fraction (0.01) allows 0" in said
    [entry] = map(json.loads, listed.read_text().splitlines())
    assert entry["where"] == f"{files[1]}:2"
    assert cli.main([*command, "--max-rejected-fraction", "0.5"]) == 0


def test_the_command_refuses_what_it_does_not_know_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "rows.jsonl", {"Frage": "p", "Antwort": "a"})
    assert cli.main(["data", str(file), str(tmp_path / "nowhere")]) == 3
    said = capsys.readouterr().out
    assert "refused     the columns (Frage, Antwort) are those of no known format" in said
    assert "nowhere\n  refused     cannot be read (No such file" in said
    columns = ["--columns", "prompt=Frage", "response=Antwort"]
    assert cli.main(["data", str(file), *columns]) == 0
    assert "mapped prompt = Frage, response = Antwort" in capsys.readouterr().out


def test_lengths_in_tokens_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from equilibrate.sandbox.tokenizer import build_tokenizer

    build_tokenizer().save_pretrained(tmp_path / "model")
    row = {"prompt": "how do i clean lamp 4 ?", "response": "so ."}
    file = write(tmp_path / "rows.jsonl", row)
    assert cli.main(["data", str(file), "--tokenizer", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    assert "answers     1 of 3 to 3 tokens" in said  # both words and the end


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data sets are not here ({REAL})")
def test_the_quirks_of_the_real_files_are_counted() -> None:
    """As SOURCES.md beside them counts them."""
    pku, rebuilt, beavertails = (
        surveyed(REAL / name)
        for name in ("pku_current_500.jsonl", "pku_v0_pairs_rebuilt.jsonl",
                     "beavertails_30k_test.csv")
    )  # fmt: skip
    assert pku.conflicts["both answers are unsafe"] == 171
    assert pku.conflicts["the better answer is unsafe"] == 174
    assert pku.conflicts["the better answer is unsafe and the other safe"] == 3
    assert pku.conflicts["the better answer is not the safer one"] == 77
    assert pku.taught["safe_first"] == 334 - 171
    assert (len(rebuilt.verdicts), list(rebuilt.verdicts.values()).count(3)) == (3272, 322)
    assert len(rebuilt.prompts_seen.keys() & beavertails.prompts_seen.keys()) == 99
    assert len(pku.prompts_seen.keys() & beavertails.prompts_seen.keys()) == 11
