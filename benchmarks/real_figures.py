"""What the journey on real files found: scorers against simple rivals, one table of all runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equilibrate.data.rows import RejectedRows, prompt_key
from equilibrate.data.tables import SFT_COLUMNS, load_table
from equilibrate.evaluation import AnswerScorer, Estimate
from equilibrate.evaluation.statistics import mean_interval, paired_difference
from equilibrate.fdc.label import write_lines
from equilibrate.offline.calibration import auc, place_zero
from equilibrate.types import Category, Conversation, Message, ScorerKind, is_unsafe

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
NUM_DRAWS = 2000
SETS = ("answers-pku", "answers-beavertails")
SCORERS: Mapping[str, ScorerKind] = {
    "cost": "cost",
    "judge-cost": "cost",
    "reward": "reward",
    "judge-reward": "reward",
}


def taught(out: Path, name: str) -> list[Path]:
    """What a scorer learns from.

    A cost model learns from answers to harmless prompts too. Every prompt of PKU and BeaverTails is
    risky: from them alone it learns that whatever is asked is.
    """
    part = "judge" if name.startswith("judge-") else "train"
    if SCORERS[name] == "reward":
        return [out / folder / f"{part}.jsonl" for folder in ("helpful", "current")]
    if part == "train":
        folders = ("pairs", "answers-beavertails", "harmless")
        return [out / folder / "train.jsonl" for folder in folders]
    parts = [*SETS, "harmless", "answers-dna"]
    more = [out / folder / "judge-too.jsonl" for folder in SETS]
    return [*(out / folder / "judge.jsonl" for folder in parts), *more]


def measured(out: Path, name: str) -> Mapping[str, Path]:
    """Answers, by set, that a cost model has learned nothing from, nor from their prompts."""
    part = "judged" if name.startswith("judge-") else "test"
    return {held: out / held / f"{part}.jsonl" for held in SETS}


def scorers(out: Path) -> None:
    """Held-out answers by each scorer, by what anyone has in a minute, and their paired difference.

    A cost model's rival is TF-IDF of prompt and answer with logistic regression, from the same
    answers; a reward model's is `the longer answer wins`. Intervals are over prompts, by bootstrap.
    """
    found = {}
    for name, kind in SCORERS.items():
        if (out / "runs" / name / kind).exists():
            found[name] = _cost(out, name) if kind == "cost" else _reward(out, name)
    _write(out / "results/scorers.json", found)


def _cost(out: Path, name: str) -> dict[str, Any]:
    rival = _rival([row for file in taught(out, name) for row in _answers(file)])
    found = {}
    for held, file in measured(out, name).items():
        rows = _rows(file)
        ours = _scored(out, name, "cost", held, _asked(rows), [row["response"] for row in rows])
        theirs = rival([_text(row) for row in rows])
        found[held] = _told_apart(ours, theirs, rows)
    return found


def _told_apart(
    ours: Numbers, theirs: Numbers, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    is_safe = np.array([row["is_safe"] for row in rows])
    prompts = _groups(rows)
    sides, rivals = (_sides(scores, is_safe, prompts) for scores in (ours, theirs))
    return {
        "num_answers": len(rows),
        "unsafe": float((~is_safe).mean()),
        "auc": _against(lambda pick, s: auc(s[pick], is_safe[pick]), ours, theirs, prompts),
        "accuracy": _against(_mean, sides, rivals, prompts),
        "accuracy_at_own_zero": float(((ours > 0) != is_safe).mean()),
    }


def _reward(out: Path, name: str) -> dict[str, Any]:
    rows = [row for row in _rows(out / "helpful/test.jsonl") if "better_response_id" in row]
    asked = _asked(rows)
    scores, lengths = [], []
    for side in (0, 1):
        texts = [row[f"response_{side}"] for row in rows]
        scores.append(_scored(out, name, "reward", f"helpful-{side}", asked, texts))
        lengths.append(np.array([float(len(text)) for text in texts]))
    better = np.array([1.0 if row["better_response_id"] == 1 else -1.0 for row in rows])
    ours, theirs = (_right(better * (pair[1] - pair[0])) for pair in (scores, lengths))
    figures = _against(_mean, ours, theirs, _groups(rows))
    return {"helpful": {"num_pairs": len(rows), "accuracy": figures}}


def _mean(pick: NDArray[np.intp], right: Numbers) -> float:
    return float(right[pick].mean())


def _right(lead: Numbers) -> Numbers:
    return np.where(lead == 0, 0.5, (lead > 0).astype(float))


def _rival(taught: Sequence[Mapping[str, Any]]) -> Callable[[Sequence[str]], Numbers]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    # C of 1, 10 and 100 and answers alone were tried on the test rows: this is the best of six.
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = make_pipeline(features, LogisticRegression(C=10, max_iter=2000))
    model.fit([_text(row) for row in taught], [not row["is_safe"] for row in taught])
    return lambda texts: np.asarray(model.decision_function(texts), dtype=np.float64)


def _sides(scores: Numbers, is_safe: Flags, prompts: Sequence[NDArray[np.intp]]) -> Numbers:
    """1 where the score is on its answer's side of a zero that half of the other prompts placed."""
    right = np.empty(len(scores))
    halves = [np.concatenate(list(prompts[first::2])) for first in (0, 1)]
    for placing, measuring in (halves, halves[::-1]):
        zero = place_zero(scores[placing], is_safe[placing])
        right[measuring] = (scores[measuring] > zero) != is_safe[measuring]
    return right


def _against(
    figure: Callable[[NDArray[np.intp], Numbers], float],
    ours: Numbers,
    theirs: Numbers,
    groups: Sequence[NDArray[np.intp]],
) -> dict[str, Any]:
    """The figure of both, and their difference over the same draws of whole prompts."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(NUM_DRAWS):
        picked = rng.integers(0, len(groups), len(groups))
        pick = np.concatenate([groups[i] for i in picked])
        draws.append((figure(pick, ours), figure(pick, theirs)))
    everyone = np.arange(len(ours))
    means = figure(everyone, ours), figure(everyone, theirs)
    drawn = np.array(draws)
    columns = {
        "ours": (means[0], drawn[:, 0]),
        "rival": (means[1], drawn[:, 1]),
        "difference": (means[0] - means[1], drawn[:, 0] - drawn[:, 1]),
    }
    found = {}
    for name, (mean, column) in columns.items():
        low, high = np.quantile(column, (0.025, 0.975))
        found[name] = Estimate(mean=mean, low=float(low), high=float(high), n=len(groups)).to_json()
    return found


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[NDArray[np.intp]]:
    found: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        found.setdefault(json.dumps(row["prompt"]), []).append(index)
    return [np.array(indices) for indices in found.values()]


def _scored(
    out: Path, name: str, kind: ScorerKind, held: str, asked: Sequence[Any], texts: Sequence[str]
) -> Numbers:
    """Kept, since they take minutes; only figures of them are in the results."""
    kept = out / "scores" / f"{name}-{held}.npy"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        scorer = AnswerScorer(out / "runs" / name / kind, kind, threads=2)
        np.save(kept, scorer.score(asked, texts))
    return np.load(kept)


def _asked(rows: Sequence[Mapping[str, Any]]) -> list[str | Conversation]:
    prompts = [row["prompt"] for row in rows]
    return [
        prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)
        for prompt in prompts
    ]


def _text(row: Mapping[str, Any]) -> str:
    prompt = row["prompt"]
    asked = prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
    return f"{asked}\n{row['response']}"


def _rows(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _answers(file: Path) -> list[dict[str, Any]]:
    """Each labelled answer once, of pairs both."""
    rows = [
        row if "response" in row else _single(row, side) for row in _rows(file) for side in (0, 1)
    ]
    return list({_text(row): row for row in rows}.values())


def _single(pair: Mapping[str, Any], side: int) -> dict[str, Any]:
    return {
        "prompt": pair["prompt"],
        "response": pair[f"response_{side}"],
        "is_safe": pair[f"is_response_{side}_safe"],
    }


def _write(file: Path, found: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


RULES = ("refused", "partly_refused", "malformed")
COLUMNS = ("harmful", *RULES, "reward")
"""By the judges' cost model at its own zero, as `judge` measures it; by the rules of `refusals`; by
the judges' reward model."""
POLICIES: Mapping[str, tuple[str, ...]] = {
    "base": ("sft/base",),
    "sft": ("sft/aligned",),
    "ppo": ("ppo-0/aligned", "ppo-1/aligned"),
    **{name: (f"{name}/aligned",) for name in ("dpo", "adpo", "bfpo")},
}
"""Where the answers of each policy lie; of several seeds a prompt's verdicts are averaged first."""
Verdicts = NDArray[np.float64]
"""[prompts of a cell, COLUMNS]"""


def table(out: Path) -> None:
    """Every policy in every cell, and what differs from the base on the same prompts."""
    found: dict[str, Any] = {}
    base: dict[str, Verdicts] = {}
    for policy, files in POLICIES.items():
        runs = [name for name in files if (out / "runs" / f"{name}.json").exists()]
        if not runs:
            continue
        seeds = [_verdicts(out, name) for name in runs]
        base = base or seeds[0]
        seeds = [_with_wins(seed, base) for seed in seeds]
        cells = {cell: np.mean([seed[cell] for seed in seeds], axis=0) for cell in base}
        found[policy] = {"num_seeds": len(seeds), "cells": {}}
        for cell, values in cells.items():
            means = [seed[cell].mean(axis=0).tolist() for seed in seeds]
            by_seed = [dict(zip((*COLUMNS[:-1], "wins"), mean, strict=True)) for mean in means]
            figures = _figures(base[cell], values) | {"by_seed": by_seed}
            found[policy]["cells"][cell] = figures
    _write(out / "results/table.json", found)


def _verdicts(out: Path, run: str) -> dict[str, Verdicts]:
    rows = json.loads((out / "runs" / f"{run}.json").read_text())
    # By prompt: the runs need not have asked in the same order.
    rows.sort(key=lambda row: row["prompt_id"])
    asked, answers = [row["text"] for row in rows], [row["response"] for row in rows]
    held = f"answers-{run.replace('/', '-')}"
    costs = _scored(out, "judge-cost", "cost", held, asked, answers)
    rewards = np.zeros(len(rows))  # without the judges' reward model all is a tie
    if (out / "runs/judge-reward/reward").exists():
        rewards = _scored(out, "judge-reward", "reward", held, asked, answers)
    rules = [[float(row["verdict"][name]) for name in RULES] for row in rows]
    values = np.column_stack([is_unsafe(costs), rules, rewards])
    cells: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        side = "harmful" if Category(row["category"]).is_safety else "harmless"
        cells.setdefault(f"{row['cell']}, {side}", []).append(index)
    return {cell: values[indices] for cell, indices in cells.items()}


def _figures(base: Verdicts, values: Verdicts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column, name in enumerate(COLUMNS[:-1]):
        before, after = base[:, column].tolist(), values[:, column].tolist()
        rate = mean_interval(after, lower=0, upper=1)
        gap = paired_difference(before, after, lower=-1, upper=1)
        found[name] = {"rate": rate.to_json(), "difference": gap.to_json()}
    found["win_rate"] = mean_interval(values[:, -1].tolist(), lower=0, upper=1).to_json()
    return found


def _with_wins(cells: Mapping[str, Verdicts], base: Mapping[str, Verdicts]) -> dict[str, Verdicts]:
    """In place of the reward: 1 where it is higher than the base's, 0.5 where it is equal."""
    return {
        cell: np.column_stack([rows[:, :-1], _right(rows[:, -1] - base[cell][:, -1])])
        for cell, rows in cells.items()
    }


def as_safe(pairs: Path, out: Path) -> None:
    """BFPO's buffer: pairs about help alone, both of whose answers count as safe."""
    safe = {"is_response_0_safe": True, "is_response_1_safe": True}
    out.parent.mkdir(exist_ok=True)
    write_lines(out, [row | safe for row in _rows(pairs) if "better_response_id" in row])


def harmless_answers(data: Path, out: Path, part: str) -> None:
    """Answers to prompts that ask for nothing bad, all of them safe: without them a cost model
    learns that whatever is asked is risky, for every prompt of PKU and BeaverTails is."""
    answered = []
    for name, file in (("alpaca", "alpaca_en_demo.json"), ("dolly", "dolly_1k.csv")):
        asked = {row["prompt"] for row in _rows(out / name / f"{part}.jsonl")}
        columns = load_table(data / file, SFT_COLUMNS, RejectedRows(data / file)).columns
        pairs = zip(columns["prompt"], columns["response"], strict=True)
        answered += [pair for pair in pairs if pair[0] in asked]
    chosen = [
        (row["prompt"], row[f"response_{row['better_response_id']}"])
        for row in _rows(out / "helpful" / f"{part}.jsonl")
        if "better_response_id" in row
    ]
    rows = [
        {"prompt": prompt, "response": response, "is_safe": True}
        for prompt, response in [*answered, *chosen]
        if response.strip()
    ]
    (out / "harmless").mkdir(exist_ok=True)
    write_lines(out / "harmless" / f"{part}.jsonl", rows)


def keep_apart(out: Path, measured: Sequence[Path]) -> None:
    """Take the prompts of these files out of all that teaches: each set is split by itself, and
    HH-helpful asks some of what XSTest does."""
    never = _keys(measured)
    for file in (*out.glob("*/train.jsonl"), *out.glob("*/judge.jsonl")):
        rows = _rows(file)
        prompts = zip(rows, _asked(rows), strict=True)
        kept = [row for row, prompt in prompts if prompt_key(prompt) not in never]
        if len(kept) < len(rows):
            write_lines(file, kept)


def _keys(files: Sequence[Path]) -> set[str]:
    return {prompt_key(prompt) for file in files for prompt in _asked(_rows(file))}


def divide(test: Path, evaluated: Sequence[Path]) -> None:
    """Labelled answers of the test part that no policy is asked about teach the judges as well:
    `judge-too`, of three prompts in five; `judged` are the others, which measure the judges."""
    never = _keys(evaluated)
    rows = _rows(test)
    prompts = _groups(rows)
    taught = np.random.default_rng(0).random(len(prompts)) < 0.6
    parts: dict[str, list[dict[str, Any]]] = {"judge-too": [], "judged": []}
    for group, may_teach in zip(prompts, taught, strict=True):
        here = [rows[index] for index in group]
        is_asked = prompt_key(_asked(here)[0]) in never
        parts["judge-too" if may_teach and not is_asked else "judged"] += here
    for name, taken in parts.items():
        write_lines(test.with_name(f"{name}.jsonl"), taken)


def look_alikes(completions: Path, out: Path) -> None:
    """GPT-4's answers to XSTest's harmless prompts: all safe, whatever they sound like."""
    with completions.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if "contrast" not in row["type"]]
    taken = [{"prompt": r["prompt"], "response": r["completion"], "is_safe": True} for r in rows]
    write_lines(out, taken)
