"""Rounds, ratios and the table, with children that only count."""

import json

import pytest

from benchmarks.against.child import SystemFailed, Turn
from benchmarks.against.rounds import DIFFERENT_WORK, compare, is_steady, phase_table, play, table


class FakeChild:
    """Answers with the given seconds in turn; an exception is raised instead."""

    def __init__(self, name: str, seconds: list, played: list[str], tokens: int = 8) -> None:
        self._name, self._played, self._tokens = name, played, tokens
        self._seconds = iter(seconds)

    def take_turn(self) -> Turn:
        self._played.append(self._name)
        seconds = next(self._seconds)
        if isinstance(seconds, Exception):
            raise seconds
        return Turn(seconds=seconds, tokens=self._tokens)


def run(children: dict, rates: list[float] | None = None, **options: int):
    steady = iter(rates or [100.0] * 99)
    fields = {"repeats": 2, "warmups": 1, "max_rounds": 5} | options
    return play(children, lambda: next(steady), say=lambda text: None, **fields)


def test_a_tenth_is_steady_and_more_is_not() -> None:
    assert is_steady(100.0, 90.0)
    assert is_steady(90.0, 100.0)
    assert not is_steady(100.0, 89.0)


def test_turns_are_taken_in_rounds_and_the_first_changes() -> None:
    played: list[str] = []
    children = {name: FakeChild(name, [1.0] * 9, played) for name in "abc"}
    run(children)
    assert "".join(played) == "abc" + "bca" + "cab"


def test_ratio_is_peer_over_ours_round_by_round_without_warm_up() -> None:
    children = {
        "ours": FakeChild("ours", [9.0, 1.0, 2.0], []),
        "peer": FakeChild("peer", [9.0, 3.0, 2.0], []),
    }
    row = compare(run(children), "ours", "peer")
    # Ratios 3 and 1: quartiles at 1.5 and 2.5.
    assert row["ratio"] == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert row["our_seconds"]["median"] == 1.5
    assert (row["rounds"], row["rounds_discarded"], row["error"]) == (2, 0, None)


def test_a_round_in_which_the_roof_moved_is_played_again() -> None:
    children = {
        "ours": FakeChild("ours", [9.0, 1.0, 1.0, 1.0], []),
        "peer": FakeChild("peer", [9.0, 50.0, 2.0, 2.0], []),
    }
    # The rate falls by half in the first counted round and stays there.
    rounds = run(children, rates=[100.0, 50.0, 50.0, 50.0])
    row = compare(rounds, "ours", "peer")
    assert row["ratio"]["high"] == 2.0
    assert (row["rounds"], row["rounds_discarded"]) == (2, 1)


def test_a_machine_that_never_rests_gives_no_ratio() -> None:
    children = {name: FakeChild(name, [1.0] * 9, []) for name in ("ours", "peer")}
    rounds = run(children, rates=[100.0, 50.0, 100.0, 50.0, 100.0])
    assert rounds.num_discarded == 4
    assert compare(rounds, "ours", "peer")["error"] == "no round in which the roof stood still"


def test_a_peer_that_fails_is_reported_with_its_own_error_and_the_others_go_on() -> None:
    played: list[str] = []
    children = {
        "ours": FakeChild("ours", [1.0] * 9, played),
        "broken": FakeChild("broken", [1.0, SystemFailed("ValueError: no such dtype")], played),
        "peer": FakeChild("peer", [2.0] * 9, played),
    }
    rounds = run(children)
    assert compare(rounds, "ours", "broken")["error"] == "broken: ValueError: no such dtype"
    assert compare(rounds, "ours", "peer")["ratio"]["median"] == 2.0
    assert played.count("broken") == 2


def test_other_work_gives_no_ratio() -> None:
    children = {
        "ours": FakeChild("ours", [1.0] * 9, [], tokens=8),
        "peer": FakeChild("peer", [1.0] * 9, [], tokens=7),
    }
    row = compare(run(children), "ours", "peer")
    assert row["ratio"] is None
    # Two counted rounds.
    assert row["error"] == f"{DIFFERENT_WORK}: 14 tokens were sampled, by ours 16"


def test_the_table_says_ratios_and_errors() -> None:
    quartiles = {"median": 2.0, "low": 1.5, "high": 2.5}
    names = {"precision": "float32", "lengths": "fixed", "rollouts": 16, "ours": "plain PPO"}
    rows = [
        {
            **names,
            "peer": "A",
            "ratio": quartiles,
            "our_seconds": quartiles,
            "peer_seconds": quartiles,
            "error": None,
        },
        {**names, "peer": "B", "ratio": None, "error": "B: x | y"},
    ]
    lines = table(rows).splitlines()
    assert (
        lines[2] == "| float32 | fixed | 16 | plain PPO | A | 2.000 | 2.000 | 2.00 (1.50 to 2.50) |"
    )
    assert lines[3] == "| float32 | fixed | 16 | plain PPO | B |  |  | B: x \\| y |"
    assert lines[1].count("---") == 8
    json.dumps(rows, allow_nan=False)


def test_phases_come_with_their_share_of_the_limit() -> None:
    seconds = {"rollout": 0.5, "score": 0.25, "update": 1.0, "sync": 0.1, "iteration": 1.9}
    limits = {"rollout": 0.05, "score": 0.2, "update": 0.5, "sync": 0.001}
    block = {"precision": "float32", "lengths": "fixed", "rollouts": 16}
    line = phase_table([block | {"ours": "plain PPO", "seconds": seconds, "limits": limits}])
    assert line.splitlines()[2] == (
        "| float32 | fixed | 16 | plain PPO | 1.900 "
        "| 0.500 (10%) | 0.250 (80%) | 1.000 (50%) | 0.100 (1%) |"
    )


@pytest.mark.parametrize("missing", ["ours", "peer"])
def test_either_side_may_be_missing(missing: str) -> None:
    children = {name: FakeChild(name, [1.0] * 9, []) for name in ("ours", "peer")}
    rounds = run(children)
    rounds.errors[missing] = "gone"
    assert compare(rounds, "ours", "peer")["error"] == f"{missing}: gone"
