from __future__ import annotations

from pathlib import Path

import pytest
import torch

from equilibrate.models.device import Accelerator
from equilibrate.models.loading import load_scorer
from equilibrate.models.new_scorer import new_scorer
from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from tests.unit.models.toys import CONFIGS, write_policy


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_new_scorer_comes_back_whole_from_its_folder(tmp_path: Path, kind: str) -> None:
    cpu = Accelerator("cpu", "float32")
    base = write_policy(tmp_path / "base", kind)
    scorer = new_scorer(base, "cost", cpu, seed=0, pad_token_id=0)
    # As `export_model` does: by the model's own names.
    weights = {name: tensor.detach() for name, tensor in scorer.model.named_parameters()}
    scorer.model.save_pretrained(tmp_path / "cost", state_dict=weights)
    write_sidecar(tmp_path / "cost", ScorerSidecar(kind="cost"))
    token_ids = torch.tensor([[3, 9, 4, 20]])
    with torch.no_grad():
        again = load_scorer(tmp_path / "cost", "cost", cpu)(token_ids)
        torch.testing.assert_close(again, scorer(token_ids), rtol=1e-6, atol=1e-7)
