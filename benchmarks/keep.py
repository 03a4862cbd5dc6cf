"""Keeps result files under version control, as rows of one file, sorted by label.

python -m benchmarks.keep runs/benchmarks/update.json             # label: update
python -m benchmarks.keep runs/lag1.json --label end_to_end-lag1
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from equilibrate.run.sinks import read_rows, write_whole

KEPT = Path(__file__).parent / "results" / "measured.jsonl"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="what a benchmark wrote with --json")
    parser.add_argument("--label", help="of the row; default: the file's name")
    arguments = parser.parse_args(argv)
    keep(arguments.file, arguments.label or arguments.file.stem)


def keep(file: Path, label: str, kept: Path = KEPT) -> None:
    """Add the row `label`, or put it in the place of an earlier one."""
    rows = {row["label"]: row for row in read_rows(kept)}
    rows[label] = {"label": label, **json.loads(file.read_text(encoding="utf-8"))}
    lines = (json.dumps(rows[name], allow_nan=False) for name in sorted(rows))
    write_whole(kept, "".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
