"""The command over scorers: `python -m equilibrate scorer`.

Heavy libraries are imported inside a command: help and errors are quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def scorer(
    folder: Annotated[
        Positional[Path],
        arg(help="A reward or cost model: TRL's, OpenRLHF's, safe-rlhf's, ours.", metavar="FOLDER"),
    ],
    settings: Annotated[
        Positional[tuple[str, ...]],
        arg(help="Settings of `fit`: data.columns, max_length, text, device.", metavar="KEY=VALUE"),
    ] = (),
    *,
    kind: Annotated[
        Literal["reward", "cost"], arg(help="What a larger score means: helpful, or harmful.")
    ],
    data: Annotated[Path, arg(help="Answers labelled safe or unsafe, or pairs.", metavar="FILE")],
    out: Annotated[
        Path | None, arg(help="By default models/FOLDER-KIND.", metavar="FOLDER")
    ] = None,
    policy: Annotated[
        Path | None,
        arg(help="The model it will score: same tokens, and its template.", metavar="FOLDER"),
    ] = None,
    label: Annotated[
        str, arg(help="Of two labels the harmful (helpful) one, if its name does not say.")
    ] = "",
    negate: Annotated[bool, arg(help="Its larger scores mean the opposite.")] = False,
    normalize: Annotated[
        Literal["as_configured", "yes", "no"],
        arg(help="Use the mean and deviation that its config.json holds."),
    ] = "as_configured",
) -> int:
    """Adopt a scorer: its folder as `train` takes it, measured, with zero placed by labels."""
    from equilibrate.config.files import parse_options
    from equilibrate.offline.adoption import Reading, adopt

    adopt(
        folder,
        kind,
        data,
        out or Path("models", f"{folder.resolve().name}-{kind}"),
        policy=policy,
        reading=Reading(
            label=label,
            negate=negate,
            normalize=None if normalize == "as_configured" else normalize == "yes",
        ),
        settings=parse_options(settings),
        say=print,
    )
    return 0
