"""From a data set to a table of labelled answers, as the objective of a training sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from equilibrate.config.fit import FitConfig
from equilibrate.config.inputs import InputFile
from equilibrate.data.answers import choices, labelled, labelled_twice, parted
from equilibrate.data.columns import Columns, categories_of
from equilibrate.data.rows import REJECTED_FILE, RejectedRows
from equilibrate.data.tables import Choice, joined, load_table
from equilibrate.errors import DataError
from equilibrate.fdc.mixture import choose_amounts
from equilibrate.models.folders import num_positions
from equilibrate.offline.objectives import OBJECTIVES
from equilibrate.offline.table import AnswerTable, encode_answers
from equilibrate.sandbox.notes import remedy_rows
from equilibrate.sandbox.policy_pairs import policy_pair_rows
from equilibrate.sandbox.world import build_world
from equilibrate.text.renderer import Renderer
from equilibrate.types import Category


def _nothing(message: str) -> None:
    pass


@contextmanager
def naming(train: Sequence[InputFile]) -> Iterator[None]:
    """Says of which files an error is that does not say so itself."""
    try:
        yield
    except DataError as error:
        paths = [str(file.path) for file in train] or ["the built-in world"]
        if str(error).startswith(tuple(paths)):
            raise
        raise DataError(f"{', '.join(paths)}: {error}") from None


def chosen_columns(
    config: FitConfig,
    train: Sequence[InputFile],
    run: Path | None,
    say: Callable[[str], None] = _nothing,
) -> Columns:
    """The data set in the amounts that are asked for.

    Args:
        train: its files; none: the built-in world writes it.
        run, say: as of `readable_columns`.
    Raises: DataError naming the file and the place at fault.
    """
    if not train:
        world = build_world(config.sandbox.seed)
        if config.fdc.remedy:
            return _by_column(list(remedy_rows(world, config.fdc.remedy, seed=config.seed)))
        rows = policy_pair_rows(
            world,
            config.fdc.amounts,
            mislabelled_fraction=config.fdc.mislabelled_fraction,
            seed=config.seed,
        )
        return _by_column(list(rows))
    tables = [readable_columns(config, file, run, say) for file in train]
    objective = OBJECTIVES[config.objective.type]
    for file, table in zip(train, tables, strict=True) if len(train) > 1 else ():
        with naming([file]):  # what one lacks must not be taken from another
            objective.view(table, config.objective, config.seed)
    columns = joined(tables, may_mix=objective.loss_of_singles is not None)
    chosen = choose_amounts(
        categories_of(columns),
        config.fdc.amounts,
        when_short=config.fdc.when_short,
        seed=config.seed,
    )
    columns = {name: [values[row] for row in chosen] for name, values in columns.items()}
    if objective.learns == "both" and not parted(columns)[0]["prompt"]:
        raise DataError(
            "hold single answers alone, which say nothing of helpfulness; add a file of pairs that "
            "are labelled for help and harm, or train objective.type=cost"
        )
    return columns


def readable_columns(
    config: FitConfig, train: InputFile, run: Path | None, say: Callable[[str], None] = _nothing
) -> Columns:
    """The rows of a file that `config.objective` can read.

    Args:
        run: folder that takes the list of the others; None writes none.
        say: takes what the data set is and what of it is left out.
    Raises: DataError as `load_table`, or naming the first of the others, if they are too many.
    """
    file = None if run is None else run / REJECTED_FILE
    path = train.path
    rejected = RejectedRows(path, max_fraction=config.data.max_rejected_fraction, file=file)
    view = OBJECTIVES[config.objective.type].view

    def read(columns: Columns) -> None:
        categories_of(columns)
        view(columns, config.objective, config.seed)

    table = load_table(
        path, ("prompt",), rejected, mapping=config.data.columns, category=train.category
    )
    table = table.taught(_choice(config))
    say(f"{path}: {table.about}")
    if "category" not in table.columns:
        say(f"{path}: names no classes of ours; all rows count as {Category.GENERAL.value}")
    for reason, count in table.left_out.items():
        say(f"{path}: {count} rows left out: {reason}")
    if not table.places:
        raise DataError(
            f"{path}: no row teaches {config.objective.type} anything ({dict(table.left_out)}); "
            f"data.prefer is {config.data.prefer}"
        )
    return table.readable(read, rejected)


def _choice(config: FitConfig) -> Choice:
    learns = OBJECTIVES[config.objective.type].learns
    if learns == "preferred":
        return lambda columns: choices(columns, config.data.prefer)
    if learns == "both":
        return lambda columns: labelled_twice(columns, "better_response_id", "safer_response_id")
    return lambda columns: labelled(columns, f"{learns}_response_id")


def labelled_answers(config: FitConfig, columns: Columns, start: Path) -> AnswerTable:
    """What `config.objective` learns of a data set, in the tokens of the model folder `start`.

    Raises: DataError naming the column, row and value at fault.
    """
    objective = OBJECTIVES[config.objective.type]
    num_alone = 0
    if objective.loss_of_singles is not None:
        num_alone = len(parted(columns)[1]["prompt"])
    return encode_answers(
        Renderer(start, config.text),
        objective.view(columns, config.objective, config.seed),
        answers_per_example=objective.answers_per_example,
        num_alone=num_alone,
        max_length=min(config.max_length, num_positions(start) or config.max_length),
    )


def require_pairs(config: FitConfig, table: AnswerTable) -> None:
    """Of two heads the one that learns from pairs alone has some to learn from, and some that
    calibrate it.

    Raises: DataError if the split leaves one side without.
    """
    if OBJECTIVES[config.objective.type].learns != "both":
        return
    parts = table.split(config.held_out_fraction, config.seed)
    for rows, what in zip(parts, ("to learn from", "held out for calibration"), strict=True):
        if not table.are_pairs(rows).any():
            raise DataError(
                f"of {table.num_groups} pairs beside {table.num_alone} single answers none is "
                f"{what} (objective.held_out_fraction is {config.held_out_fraction:g} of the "
                "prompts); give more pairs, or another share or seed"
            )


def _by_column(rows: Sequence[Mapping[str, Any]]) -> Columns:
    return {name: [row[name] for row in rows] for name in rows[0]}
