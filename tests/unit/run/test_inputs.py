from __future__ import annotations

import json
from pathlib import Path

import pytest

from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.errors import DataError
from equilibrate.run.door import check_inputs
from tests.tiny_models import write_models


def test_a_scorer_goes_on_from_one_of_its_kind_alone(tmp_path: Path) -> None:
    models = write_models(tmp_path)
    rows = [{"prompt": f"p {row}", "response": "a", "is_safe": bool(row % 2)} for row in range(40)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(start: str) -> FitConfig:
        data = {"policy": str(models / start), "train": str(tmp_path / "labels.jsonl")}
        return parse_settings(FitConfig, {"data": data, "objective": {"type": "cost"}})

    check_inputs(config("cost"), tmp_path)
    check_inputs(config("policy"), tmp_path)
    with pytest.raises(DataError, match=r"kind \('reward'\) must be 'cost'"):
        check_inputs(config("reward"), tmp_path)
