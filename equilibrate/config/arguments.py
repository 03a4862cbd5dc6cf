"""Arguments that several commands take, as `tyro` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

Configs = Annotated[
    UseAppendAction[tuple[Path, ...]],
    arg(help="YAML file; repeat it to lay one over another.", metavar="FILE"),
]
Overrides = Annotated[
    Positional[tuple[str, ...]],
    arg(help="Settings laid over the files, as key.path=value.", metavar="KEY=VALUE"),
]
RunFolder = Annotated[Positional[Path], arg(help="Folder of a run.", metavar="RUN")]
MoreRuns = Annotated[
    Positional[tuple[Path, ...]],
    arg(help="Runs of the same settings with other seeds.", metavar="RUN"),
]
OtherRuns = Annotated[
    tuple[Path, ...],
    arg(help="Runs of other settings with the same seeds: print what changes.", metavar="RUN"),
]
