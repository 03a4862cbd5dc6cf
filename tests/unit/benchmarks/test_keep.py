"""Rows of kept measurements: one a label, sorted, the others as they were."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import keep


def test_a_row_a_label(tmp_path: Path):
    kept, file = tmp_path / "measured.jsonl", tmp_path / "sync.json"
    for label, ratio in (("sync", 1.0), ("rollout", 2.0), ("sync", 3.0)):
        file.write_text(json.dumps({"ratio": ratio}, indent=1))
        keep.keep(file, label, kept)
    assert kept.read_text() == (
        '{"label": "rollout", "ratio": 2.0}\n{"label": "sync", "ratio": 3.0}\n'
    )


def test_what_is_kept_here_is_sorted_and_has_one_row_a_label():
    labels = [json.loads(line)["label"] for line in keep.KEPT.read_text().splitlines()]
    assert labels == sorted(set(labels))
    assert {"against", "against-noisy", "simulate", "update"} <= set(labels)
