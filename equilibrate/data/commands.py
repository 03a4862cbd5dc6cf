"""The commands over data sets: `python -m equilibrate data` and `split`.

Heavy libraries are imported inside a command: help and errors are quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def data(
    files: Annotated[
        Positional[tuple[str, ...]],
        arg(help="Files, folders, or names of data sets on the hub.", metavar="FILE"),
    ],
    evaluation: Annotated[
        tuple[str, ...], arg(help="Sets to evaluate by: what they share with the others.")
    ] = (),
    tokenizer: Annotated[
        Path | None, arg(help="Model folder: lengths in its tokens, not in characters.")
    ] = None,
    columns: Annotated[
        tuple[str, ...],
        arg(help="What columns of other names hold, such as prompt=Question.", metavar="KEY=NAME"),
    ] = (),
    rejected: Annotated[
        Path | None, arg(help="Where the rows that break a rule are listed, as JSON lines.")
    ] = None,
    max_rejected_fraction: Annotated[
        float, arg(help="Share of the rows of a file that may break a rule; beyond it, exit 3.")
    ] = 0.01,
) -> int:
    """Say what data sets are, what they hold, what is wrong with them and what they share."""
    from equilibrate.config.files import parse_options
    from equilibrate.data.survey import survey_all
    from equilibrate.errors import DataError
    from equilibrate.text.renderer import Renderer

    is_good = survey_all(
        files,
        evaluation,
        renderer=None if tokenizer is None else Renderer(tokenizer),
        columns={name: str(column) for name, column in parse_options(columns).items()},
        max_rejected_fraction=max_rejected_fraction,
        rejected_file=rejected,
        say=print,
    )
    return 0 if is_good else DataError.exit_code


def split(
    files: Annotated[
        Positional[tuple[str, ...]],
        arg(help="Files as `data` takes them; CLASS=FILE classes its prompts.", metavar="FILE"),
    ],
    out: Annotated[Path, arg(help="Folder that takes PART.jsonl of each part.", metavar="FOLDER")],
    shape: Annotated[
        Literal["prompts", "answers", "pairs"],
        arg(help="prompts; answers that are labelled safe or unsafe, also from pairs; or pairs."),
    ],
    parts: Annotated[
        tuple[str, ...], arg(help="The parts and their shares.", metavar="NAME=SHARE")
    ] = ("train=0.9", "test=0.1"),
    seed: Annotated[int, arg(help="Of the split.", metavar="N")] = 0,
    columns: Annotated[tuple[str, ...], arg(help="As `data` takes them.", metavar="KEY=NAME")] = (),
    max_rejected_fraction: Annotated[float, arg(help="As `data` takes it.")] = 0.01,
) -> int:
    """Split data sets into parts that share no prompt, in one form, whichever files hold it."""
    from equilibrate.config.files import parse_options
    from equilibrate.data import split as splits

    splits.split(
        [splits.file_of(text) for text in files],
        splits.parts_of(parts),
        out,
        shape=shape,
        seed=seed,
        columns={name: str(column) for name, column in parse_options(columns).items()},
        max_rejected_fraction=max_rejected_fraction,
        say=print,
    )
    return 0
