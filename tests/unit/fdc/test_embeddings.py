from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equilibrate.errors import DataError, ResourceError
from equilibrate.fdc import commands, local
from equilibrate.fdc.embeddings import Embedder
from tests.tiny_models import write_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_models(tmp_path_factory.mktemp("models")) / "policy"
    file = made / "tokenizer.json"
    # Its words are apart by spaces, or all but single words would be one unknown token.
    tokenizer = json.loads(file.read_text()) | {"pre_tokenizer": {"type": "WhitespaceSplit"}}
    file.write_text(json.dumps(tokenizer))
    return made


def test_vectors_are_means_over_tokens_of_two_layers(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    found = Embedder(folder, tmp_path)(["w5", "w7"])
    model = AutoModel.from_pretrained(folder)
    for word, vector in zip((5, 7), found, strict=True):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([[word]]), output_hidden_states=True)
        # Two layers and the words: the middle is 1, before it are the words themselves.
        expected = torch.cat(states.hidden_states[:2], dim=-1)[0, 0]
        np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-6)


def test_padding_and_company_change_nothing(folder: Path, tmp_path: Path) -> None:
    texts = ["w5 w6 w7 w8 w9 w10", "w5", "", "w6 w7"]
    together = Embedder(folder, tmp_path / "a")(texts)
    for row, text in enumerate(texts):
        alone = Embedder(folder, tmp_path / str(row))([text])
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-4, atol=1e-5)
    assert Embedder(folder, tmp_path)([]).shape == (0, 0)


def test_what_is_on_disk_is_not_computed_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equilibrate.fdc.embeddings._CHUNK", 2)
    first = Embedder(folder, tmp_path)(["w5", "w6", "w7"])
    assert len(list(tmp_path.glob("*.npy"))) == 2
    # An interruption left the second chunk out: only it is computed.
    asked = []
    second = Embedder(folder, tmp_path)
    embed = second._embed
    monkeypatch.setattr(second, "_embed", lambda texts: asked.append(texts) or embed(texts))
    assert (second(["w5", "w6", "w7"]) == first).all()
    assert asked == []
    assert second(["w5", "w6", "w8"]).shape == first.shape
    assert asked == [["w8"]]


def test_a_folder_that_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold config\.json"):
        Embedder(tmp_path, tmp_path / "cache")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard"}))
    with pytest.raises(DataError, match="no model that gives vectors"):
        Embedder(tmp_path, tmp_path / "cache")(["a"])


def test_the_command_reads_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn comes with the extra `label`")
    # The class is told by the first word; the numbers make the prompts different.
    rows = [
        {"prompt": f"w{5 + i % 2} w{8 + i}", "category": ["EHD", "IHD"][i % 2]} for i in range(30)
    ]
    train, file = tmp_path / "train.jsonl", tmp_path / "p.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file.write_text('{"prompt": "w5 w5"}\n{"prompt": "w6 w6"}\n')
    options = commands.LabelOptions(file=file, out=tmp_path / "out", train=(train,), embed=folder)

    def no_endpoint(*_: str) -> Any:
        raise AssertionError

    assert commands.label(options, no_endpoint) == 0
    labelled = (tmp_path / "out" / "labelled.jsonl").read_text().splitlines()
    assert [json.loads(line)["category"] for line in labelled] == ["EHD", "IHD"]
    assert "30 labelled prompts, each unseen" in capsys.readouterr().out
    assert list((tmp_path / "out" / "vectors").glob("*.npy"))


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equilibrate.fdc.classifier.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"pip install 'equilibrate\[label\]'"):
        local.LocalLabeller([], [])
