"""Turns in rounds, ratios of pairs, and the table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.against.child import Child, SystemFailed, Turn
from benchmarks.harness import ROOF_TOLERANCE, Pairs, Quartiles, moved_fraction
from benchmarks.limits import PHASES

DIFFERENT_WORK = "different work"
"""How an error begins that makes the numbers of both sides worthless."""


@dataclass(slots=True)
class Rounds:
    """What was measured under one setting."""

    turns: dict[str, list[Turn]]
    """By system: those of the counted rounds, in the same order for all."""
    errors: dict[str, str] = field(default_factory=dict)
    """Why a system is missing: its own words."""
    rates: list[float] = field(default_factory=list)
    """Products per second, before the first counted round and after every one."""
    counted: list[int] = field(default_factory=list)
    """Numbers of the counted rounds, warm-ups included in the counting."""
    num_discarded: int = 0


def is_steady(before: float, after: float) -> bool:
    """Whether the machine's rate of products moved by at most a tenth."""
    return moved_fraction(before, after) <= ROOF_TOLERANCE


def play(
    children: Mapping[str, Child],
    rate: Callable[[], float],
    *,
    repeats: int,
    warmups: int,
    max_rounds: int,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Rounds:
    """Warm up, then count rounds until `repeats` of them were steady or `max_rounds` are over.

    In each round every system has one turn; who begins moves on by one from round to round.
    """
    rounds = Rounds(turns={name: [] for name in children})
    for number in range(warmups):
        _one_round(children, rounds, number)
    rounds.rates.append(rate())
    for number in range(warmups, max_rounds):
        turns = _one_round(children, rounds, number)
        rounds.rates.append(rate())
        steady = is_steady(*rounds.rates[-2:])
        seconds = "  ".join(f"{name} {turn.seconds:.3f}" for name, turn in turns.items())
        say(f"  round {number}: {seconds}{'' if steady else '  (discarded: the roof moved)'}")
        if not steady:
            rounds.num_discarded += 1
            continue
        rounds.counted.append(number)
        for name, turn in turns.items():
            rounds.turns[name].append(turn)
        if number + 1 - warmups - rounds.num_discarded == repeats:
            break
    return rounds


def _one_round(children: Mapping[str, Child], rounds: Rounds, number: int) -> dict[str, Turn]:
    names = [name for name in children if name not in rounds.errors]
    turns = {}
    for position in range(len(names)):
        name = names[(position + number) % len(names)]
        try:
            turns[name] = children[name].take_turn()
        except SystemFailed as error:
            rounds.errors[name] = str(error)
    return turns


def compare(rounds: Rounds, ours: str, peer: str) -> dict[str, Any]:
    """Ratio and seconds of one pair; of a system that is missing, the error instead."""
    row: dict[str, Any] = {"ours": ours, "peer": peer, "ratio": None, "error": None}
    for name in (peer, ours):
        if name in rounds.errors:
            return row | {"error": f"{name}: {rounds.errors[name]}"}
    seconds = {name: tuple(turn.seconds for turn in rounds.turns[name]) for name in (ours, peer)}
    if not seconds[ours]:
        return row | {"error": "no round in which the roof stood still"}
    sampled = {name: sum(turn.tokens for turn in rounds.turns[name]) for name in (ours, peer)}
    if sampled[ours] != sampled[peer]:
        error = f"{DIFFERENT_WORK}: {sampled[peer]} tokens were sampled, by ours {sampled[ours]}"
        return row | {"error": error}
    pairs = Pairs(ours=seconds[ours], reference=seconds[peer])
    return row | {
        "ratio": asdict(Quartiles.of(pairs.ratios)),
        "our_seconds": asdict(Quartiles.of(pairs.ours)),
        "peer_seconds": asdict(Quartiles.of(pairs.reference)),
        "rounds": len(pairs.ours),
        "rounds_discarded": rounds.num_discarded,
    }


COLUMNS = (
    "precision",
    "lengths",
    "rollouts",
    "ours",
    "peer",
    "ours, s",
    "peer, s",
    "ratio (quartiles)",
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line per comparison; one that failed says why."""
    return _markdown(COLUMNS, map(_cells, rows))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    first = tuple(str(row[c]) for c in ("precision", "lengths", "rollouts", "ours", "peer"))
    ratio = row["ratio"]
    if ratio is None:
        return (*first, "", "", str(row["error"]).replace("|", "\\|"))
    return (
        *first,
        f"{row['our_seconds']['median']:.3f}",
        f"{row['peer_seconds']['median']:.3f}",
        f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
    )


def phase_table(phases: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line per mode of ours, each phase as `seconds (share of its limit)`."""
    columns = ("precision", "lengths", "rollouts", "ours", "iteration, s", *PHASES)
    lines = []
    for row in phases:
        seconds, limits = row["seconds"], row["limits"]
        cells = (f"{seconds[p]:.3f} ({limits[p] / seconds[p]:.0%})" for p in PHASES)
        first = (str(row[c]) for c in columns[:4])
        lines.append((*first, f"{seconds['iteration']:.3f}", *cells))
    return _markdown(columns, lines)


def _markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    every = (columns, ("---",) * len(columns), *lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in every)
