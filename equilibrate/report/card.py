"""The model card: `README.md` of the folder that a run exports, as Hugging Face reads it.

It is made of what the run recorded, so it can be written again. No prompt and no answer stands in
it, and every word that comes from a file or a setting is escaped.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from equilibrate.config.sources import name_of, reads_text
from equilibrate.evaluation import EvaluationTable
from equilibrate.evaluation.agreement import cite
from equilibrate.models.folders import IMPORT_NOTE, read_object
from equilibrate.report.headline import (
    Line,
    headline_groups,
    percent,
    signed,
    unreadable_verdicts,
)
from equilibrate.report.html import leaves
from equilibrate.report.inputs import CONFIG_FILE, LAST_ITERATIONS, RunRecord, numbers, shares_of
from equilibrate.run.contents import CARD_FILE, CARD_MARK, is_card
from equilibrate.run.folder import ALIGNED, INPUTS_FILE, STAGES
from equilibrate.run.sinks import Row, write_whole

logger = logging.getLogger(__name__)

NOT_STATED = "not stated"
_MODELS = ("policy", "reward", "cost", "more_rewards")
_MADE = (ALIGNED, "reward", "cost", "scorer")
"""Folders of models in the run that made them."""
_MATTER = (
    "seed", "dtype", "iterations", "epochs", "steps", "batch_size", "lr", "max_length",
    "multiplier", "objective", "ppo", "constraint", "ama", "fdc", "rollout.prompts_per_iteration",
    "rollout.copies", "rollout.temperature", "rollout.max_new_tokens", "rollout.max_policy_lag",
    "learner.policy_lr", "learner.critic_lr", "learner.two_headed_critic", "learner.lr_schedule",
    "learner.average_decay", "learner.ptx_coef", "data.prefer", "data.more_rewards",
    "max_unsafe_share",
)  # fmt: skip
"""Settings that say how a policy was trained; the rest says where and by how many processes."""
_HUB_CACHE = re.compile(r"models--(.+?)--(.+)")
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)


def write_card(run: Path, record: RunRecord) -> Path | None:
    """Write the card of a finished run's policy into its folder; None where there is none.

    A README.md of somebody else is left as it is.
    """
    folder = run / ALIGNED
    if not record.results or not (folder / "config.json").is_file():
        return None
    card = folder / CARD_FILE
    if card.exists() and not is_card(card):
        logger.warning("%s is not a card of ours: left as it is", card)
        return None
    write_whole(card, render_card(record))
    return card


def render_card(
    record: RunRecord, *, checkpoint: int | None = None, origin: Mapping[str, Any] | None = None
) -> str:
    """The card as Markdown with its YAML front matter.

    Args:
        checkpoint: iteration of the exported policy where it is not the end of the run: what was
            measured at the end is then left out.
        origin: of an export, for its front matter.
    """
    if checkpoint is not None and checkpoint == record.end:
        checkpoint = None
    base = record.results.get("base_model") or ""
    sections = {
        "How it was made": _how(record, checkpoint),
        "Settings": _settings(record),
        "Data": _data(record),
        "Mixture": _mixture(record, checkpoint),
        "End of training": _end(record, checkpoint),
        "Evaluation": _evaluation(record, checkpoint),
        "Limits": _limits(record, checkpoint),
        "Versions": _versions(record),
    }
    title = f"# {escape(record.name)}: {escape(base or 'a model of the built-in world')}, aligned"
    body = [f"## {name}\n\n{text}" for name, text in sections.items() if text]
    return "\n\n".join([_front_matter(record, base, origin), title, *body]) + "\n"


def escape(text: object) -> str:
    """One line of plain text: nothing in it is Markdown or HTML, or ends a cell of a table."""
    words = " ".join(str(text).split())
    shown = "".join(c for c in words if c.isprintable())
    # `www.` and an `@` or `:` would make links of their own.
    return re.sub(r"([!-$&-+:-@\[-`{-~]|(?<=www)\.)", r"\\\1", shown)


def base_model(policy: Path) -> str:
    """Its name on the hub where its place tells, else its own; of a run's, what that began from."""
    if policy.parent.name == STAGES and (policy / IMPORT_NOTE).is_file():
        return "{source}+{adapter}".format_map(read_object(policy / IMPORT_NOTE))
    if is_card(policy / CARD_FILE):
        return str(front_matter(policy).get("base_model") or policy.name)
    for part in policy.resolve().parts:
        if found := _HUB_CACHE.fullmatch(part):
            return "/".join(found.groups())
    return policy.resolve().name


def front_matter(folder: Path) -> dict[str, Any]:
    """The metadata at the top of a folder's README.md; empty where there is none to be read."""
    try:
        found = _FRONT_MATTER.match((folder / CARD_FILE).read_text(encoding="utf-8"))
        content = yaml.safe_load(found[1]) if found else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def made_of(policy: str, run: Path) -> dict[str, Any]:
    """`base_model`, what the training started from, and `inputs`, what it learned from: while they
    are there to be asked.

    Args: policy: folder; empty in the built-in world.
    """
    base = base_model(Path(policy)) if policy else ""
    return {"base_model": base, "inputs": list(ingredients(run))}


def ingredients(run: Path, *, of: str = "") -> Iterator[dict[str, str]]:
    """Every input of a run, and what the runs learned from that made its models.

    Each is `key` (of the settings), `of` (the model that learned from it; empty for the run's own),
    `name`, `content` (the hash when the run began) and `licence`, empty where nobody states it.
    """
    if not (run / CONFIG_FILE).is_file() or not (run / INPUTS_FILE).is_file():
        return
    data = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8")).get("data") or {}
    for dotted, content in json.loads((run / INPUTS_FILE).read_text(encoding="utf-8")).items():
        section, _, key = dotted.partition(".")
        if section != "data":
            continue  # a start in the built-in world is of that world, as all else there
        name, _, place = key.rstrip("]").partition("[")
        given = data.get(name) or key
        if place:
            given = given[int(place)].get("source") or given[int(place)]["file"]
        path = Path(given)
        if not of or name not in (*_MODELS, "evaluation"):
            yield {
                "key": key,
                "of": of,
                "name": _named(name, path),
                "content": content,
                "licence": str((data.get("licences") or {}).get(name) or _stated_licence(path)),
            }
        if name in _MODELS and path.name in _MADE:
            yield from ingredients(path.resolve().parent, of=key)


def _named(key: str, path: Path) -> str:
    if key in _MODELS and reads_text(path):
        return name_of(path)
    return base_model(path) if key == "policy" else path.resolve().name


def _stated_licence(path: Path) -> str:
    licence = front_matter(path).get("license") if path.is_dir() else ""
    return licence if isinstance(licence, str) else ""


def _front_matter(record: RunRecord, base: str, origin: Mapping[str, Any] | None) -> str:
    constrained = "objective" not in record.config and record.bounded is not None
    kind = (record.config.get("objective") or {}).get("type", "ppo")
    licences = {" ".join(r["name"].split()): r["licence"] for r in _rows(record) if r["licence"]}
    meta: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base:
        meta["base_model"] = " ".join(base.split())
    meta["tags"] = ["equilibrate", "alignment", str(kind), *(["safe-rlhf"] if constrained else [])]
    if licences:
        meta["data_licences"] = licences
    if origin:
        meta["equilibrate"] = dict(origin)
    text = yaml.safe_dump(meta, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{CARD_MARK}\n{text}---"


def _how(record: RunRecord, checkpoint: int | None) -> str:
    config, results = record.config, record.results
    if objective := config.get("objective"):
        name = f"{str(objective.get('type')).upper()} on labelled answers"
    else:
        name = "PPO"
        if record.bounded is not None:
            name += f" with a Lagrange multiplier on the {_bounded(record)}"
        name += f", advantages by {(config.get('ppo') or {}).get('advantage', 'gae')}"
    if config.get("ama"):
        name += ", masked by token scores (AMA)"
    start = "the built-in world's base model"
    if (config.get("sandbox") or {}).get("policy"):
        start = "a policy that was aligned in the built-in world"
    start = escape(results.get("base_model") or start)
    lines = [f"Made with equilibrate from {start} by {escape(name)}."]
    if checkpoint is not None:
        end = record.end
        of = f"not the end of the run (iteration {end})" if end else "of a run that had not ended"
        lines.append(f"This is the checkpoint of iteration {checkpoint}, {of}.")
    if results.get("stopped_early") and checkpoint is None:
        lines.append(f"The run ended early: {escape(results['stopped_early'])}.")
    return " ".join(lines)


def _settings(record: RunRecord) -> str:
    shown = [
        (escape(key), escape(value))
        for key, value in leaves(record.config)
        if any(key == name or key.startswith(f"{name}.") for name in _MATTER)
    ]
    return _table(("setting", "value"), shown)


def _rows(record: RunRecord) -> list[dict[str, str]]:
    """The inputs; a licence that the settings name today counts."""
    licences = (record.config.get("data") or {}).get("licences") or {}
    return [
        # One of several files is `train[0]`; they have one licence together.
        row
        | {
            "licence": (not row["of"] and licences.get(row["key"].partition("[")[0]))
            or row["licence"]
        }
        for row in record.results.get("inputs") or ()
    ]


def _data(record: RunRecord) -> str:
    rows = [
        (
            escape(row["name"]),
            escape(f"{row['key']} of the {row['of']} model" if row["of"] else row["key"]),
            escape(row["content"]),
            escape(row["licence"] or NOT_STATED),
        )
        for row in _rows(record)
    ]
    if not rows:
        seed = (record.config.get("sandbox") or {}).get("seed", 0)
        return f"All of it was written by equilibrate's built-in world, seed {escape(seed)}."
    what = "A content is a BLAKE2b hash of 128 bits; of a single file `b2sum -l 128 FILE` shows it."
    return f"{_table(('input', 'used as', 'content', 'licence'), rows)}\n\n{what}"


def _mixture(record: RunRecord, checkpoint: int | None) -> str:
    shares = record.results.get("mixture") or {}
    if checkpoint is not None:
        shares = shares_of((_before(record.metrics, checkpoint) or [{}])[-1])
    if not shares:
        return ""
    kind = "answers learned from" if record.config.get("objective") else "prompts handed out"
    rows = [(escape(name), percent(share)) for name, share in shares.items()]
    return f"Share of each class among all {kind}.\n\n{_table(('class', 'share'), rows)}"


def _end(record: RunRecord, checkpoint: int | None) -> str:
    names = ("cost_mean", "unsafe_share", "multiplier_final", "kl_final", "iterations")
    cost, share, multiplier, kl, iterations = map(record.results.get, names)
    if checkpoint is not None:
        rows = _before(record.metrics, checkpoint)
        cost, share = (
            fmean(last) if (last := numbers(rows, name)[-LAST_ITERATIONS:]) else None
            for name in (record.cost_name, record.share_name)
        )
        multiplier, kl = (
            next(iter(numbers(rows, name)[::-1]), None) for name in ("multiplier", "kl")
        )
        iterations = checkpoint
    rows_shown = [("iterations", str(iterations))] if iterations is not None else []
    if kl is not None:
        rows_shown.append(("KL to the start, nats per token", f"{kl:.4g}"))
    mean = f"mean of the last {LAST_ITERATIONS} iterations at most"
    if cost is not None:
        rows_shown.append((f"learned cost, {mean}", f"{cost:.4g}"))
    if share is not None:
        rows_shown.append((f"share of unsafe answers by the cost model, {mean}", f"{share:.4g}"))
    if record.bounded is not None:
        metric, bound = record.bounded
        value = cost if metric == record.cost_name else share
        held = "" if value is None else ": within" if value <= bound else ": NOT held"
        rows_shown.append((f"bound of the {_bounded(record)}", f"{bound:g}{held}"))
        if multiplier is not None:
            rows_shown.append(("lambda", f"{multiplier:.4g}"))
    return _table(("", "at the end"), rows_shown) if rows_shown else ""


def _bounded(record: RunRecord) -> str:
    """What the multiplier acts on, in words."""
    is_share = record.bound_of(record.share_name) is not None
    return "share of unsafe answers" if is_share else "cost"


def _before(rows: Sequence[Row], iteration: int) -> list[Row]:
    return [row for row in rows if row["iteration"] < iteration]


def _evaluation(record: RunRecord, checkpoint: int | None) -> str:
    judge = record.results.get("judge")
    tables = {"start": record.base, "aligned model": record.aligned}
    if checkpoint is not None:
        tables = {"checkpoint": dict(record.evaluations).get(checkpoint)}
    told = filter(None, (judge_agreement(record), unreadable_verdicts(**tables)))
    by = f"Judged by {escape(judge)}; {escape('; '.join(told))}." if judge else ""
    if checkpoint is not None:
        table = tables["checkpoint"]
        if table is None:
            return "Nobody measured this checkpoint: what the run measured at its end is another."
        return f"{by} A part of the prompts, this checkpoint alone.\n\n{_one_table(table)}".strip()
    groups = headline_groups(record)
    if not groups:
        return "Nobody measured it: the run had no evaluation prompts."
    rows = [
        (escape(group.title), escape(line.cell), *_figures(line))
        for group in groups
        for line in group.lines
    ]
    head = ("figure", "cell", "start", "aligned", "aligned - start [95 %], points", "n")
    return f"{by}\n\n{_table(head, rows)}"


def _figures(line: Line) -> tuple[str, ...]:
    gap = line.difference
    shown = "" if gap is None else f"{signed(gap.mean)} [{signed(gap.low)}, {signed(gap.high)}]"
    return percent(line.base.mean), percent(line.aligned.mean), shown, str(line.aligned.n)


def _one_table(table: EvaluationTable) -> str:
    groups = {
        "Harmful compliance": table.harmful_compliance,
        "Over-refusal": table.over_refusal,
        "Helpfulness": table.helpfulness,
        "Malformed answers": {"all prompts": table.malformed},
    }
    rows = [
        (title, escape(cell), percent(figure.mean), str(figure.n))
        for title, cells in groups.items()
        for cell, figure in cells.items()
    ]
    return _table(("figure", "cell", "checkpoint", "n"), rows)


def judge_agreement(record: RunRecord) -> str:
    """How far the judge can be believed; empty where nothing was judged."""
    judge = record.results.get("judge")
    if not judge:
        return ""
    measured = [cite(one) for one in record.results.get("judge_agreement") or ()]
    # Its own name for itself; it knows the rules that its world was made by.
    known = "exact by construction" if judge == "oracle" else "nobody measured it"
    return f"judge agreement: {'; '.join(measured) or known}"


def _limits(record: RunRecord, checkpoint: int | None) -> str:
    found = [
        "It can still give harmful, wrong or needlessly refusing answers: the figures above are of "
        "those prompts, that judge and those languages alone.",
    ]
    if record.bounded is not None:
        found.append(
            f"What is bounded is the {_bounded(record)} by a learned model, in the mean over the "
            "training, not the harm of any one answer, and only as well as that model can tell."
        )
    judge = record.results.get("judge")
    if judge and judge != "oracle" and not record.results.get("judge_agreement"):
        found.append("Nobody measured how far the judge agrees with people.")
    if not any(key.startswith("data.") for key in record.inputs):
        found.append("It speaks the language of a built-in toy world and is of no other use.")
    if any(not row["licence"] for row in _rows(record)):
        found.append(
            "Inputs whose licence is not stated may forbid some uses of this model: ask their "
            "owners."
        )
    found.append("The licence of the base model goes on to hold for it.")
    return "\n".join(f"- {text}" for text in found)


def _versions(record: RunRecord) -> str:
    versions = record.results.get("versions") or {}
    return ", ".join(f"{escape(name)} {escape(version)}" for name, version in versions.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
