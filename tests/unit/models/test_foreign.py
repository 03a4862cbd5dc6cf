"""Scorers as others save them: recognised, folded to the same scores, refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig

from equilibrate.errors import DataError
from equilibrate.models.device import Accelerator
from equilibrate.models.folders import INDEX_FILE, WEIGHT_FILE, check_folder
from equilibrate.models.foreign import LAYOUTS, ForeignScorer, convert, read_foreign
from equilibrate.models.loading import load_scorer
from equilibrate.models.sidecar import SIDECAR_FILE, ScorerSidecar, read_heads, write_sidecar
from tests.unit.models.toys import causal_model, write_policy, write_scorer

CPU = Accelerator("cpu", "float32")
TOKENS = torch.tensor([[1, 7, 9, 4, 3], [1, 5, 5, 8, 30]])


def write_foreign(
    folder: Path,
    head: Mapping[str, torch.Tensor],
    entries: Mapping[str, Any],
    *,
    kind: str = "llama",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """The trunk of a causal model with another head, and another config.json."""
    model = causal_model(kind).to(dtype)
    model.save_pretrained(folder)
    prefix = f"{model.base_model_prefix}."
    trunk = {k: v for k, v in load_file(folder / WEIGHT_FILE).items() if k.startswith(prefix)}
    save_file(trunk | dict(head), folder / WEIGHT_FILE, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | dict(entries)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@torch.no_grad()
def hidden_states(folder: Path, kind: str = "llama") -> torch.Tensor:
    """[2, T, H], by transformers alone."""
    model = causal_model(kind)
    names = dict(model.state_dict())
    weights = {k: v.float() for k, v in load_file(folder / WEIGHT_FILE).items() if k in names}
    model.load_state_dict(weights, strict=False)
    return model.eval().base_model(input_ids=TOKENS, use_cache=False).last_hidden_state


def converted(found: ForeignScorer, out: Path) -> torch.Tensor:
    """[2, T], scores by our own loader."""
    out.mkdir()
    convert(found, out)
    check_folder(out, found.kind)
    with torch.no_grad():
        return load_scorer(out, found.kind, CPU)(TOKENS)


def head(rows: int = 1, *, name: str = "score", bias: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {f"{name}.weight": torch.randn(rows, 16, generator=generator)}
    if bias:
        found[f"{name}.bias"] = torch.randn(rows, generator=generator)
    return found


BEAVER = {"score_type": "cost", "do_normalize": True, "score_dim": 1, "mean": [2.5], "var": [9.0]}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("score_type", ["reward", "cost"])
def test_a_beaver_model_scores_what_it_scored(tmp_path: Path, kind: str, score_type: Any) -> None:
    """The head's bias, then (x - mean) / (std + 1e-8); of a cost x / (std + 1e-8)."""
    tensors = head(name="score_head", bias=True) | {
        "normalizer.mean": torch.tensor([1.5]),
        "normalizer.var": torch.tensor([4.0]),
        "normalizer.count": torch.tensor([7]),
    }
    if kind == "llama":  # a buffer that models of 2023 were saved with
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    source = write_foreign(
        tmp_path / "beaver", tensors, BEAVER | {"score_type": score_type}, kind=kind
    )
    raw = hidden_states(source, kind) @ tensors["score_head.weight"][0]
    raw = raw + tensors["score_head.bias"]
    # The buffers that were saved count, not what config.json says of them.
    expected = (raw - (1.5 if score_type == "reward" else 0.0)) / (2.0 + 1e-8)
    found = read_foreign(source, score_type)
    assert found.layout is LAYOUTS["safe_rlhf"]
    torch.testing.assert_close(converted(found, tmp_path / "out"), expected, rtol=0, atol=1e-5)
    entries = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"do_normalize", "mean", "var", "score_type", "score_dim"} & set(entries)
    assert entries["architectures"][0].endswith("ForSequenceClassification")


def test_a_normaliser_that_is_switched_off_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    source = write_foreign(
        tmp_path / "beaver", head(name="score_head"), BEAVER | {"do_normalize": False}
    )
    assert read_foreign(source, "cost").sidecar.scale == 1.0
    asked = read_foreign(source, "cost", normalize=True).sidecar
    assert (asked.scale, asked.bias) == (pytest.approx(1 / 3), 0.0)
    bare = write_scorer(tmp_path / "bare", role="policy")
    with pytest.raises(DataError, match="holds no mean and deviation"):
        read_foreign(bare, "cost", normalize=True)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("value_head", {}),
        ("score", {"value_head_prefix": "score"}),
        ("score", {}),
        ("regression_head", {"value_head_prefix": "regression_head"}),
    ],
)
def test_an_openrlhf_model_scores_what_it_scored(
    tmp_path: Path, name: str, entries: dict[str, Any]
) -> None:
    entries = {"normalize_reward": True, "mean": -3.0, "std": 0.25} | entries
    source = write_foreign(tmp_path / "rm", head(name=name), entries)
    raw = hidden_states(source) @ head()["score.weight"][0]
    found = read_foreign(source, "reward")
    assert found.layout is LAYOUTS["openrlhf"]
    torch.testing.assert_close(
        converted(found, tmp_path / "out"), (raw + 3.0) / 0.25, rtol=0, atol=1e-5
    )


def test_a_reward_turned_round_is_a_cost(tmp_path: Path) -> None:
    entries = {"normalize_reward": True, "mean": -3.0, "std": 0.25}
    source = write_foreign(tmp_path / "rm", head(name="value_head", bias=True), entries)
    plain = head(name="value_head", bias=True)
    raw = hidden_states(source) @ plain["value_head.weight"][0] + plain["value_head.bias"]
    found = read_foreign(source, "cost", negate=True)
    torch.testing.assert_close(
        converted(found, tmp_path / "out"), -(raw + 3.0) / 0.25, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_labels_become_their_difference(tmp_path: Path, dtype: torch.dtype) -> None:
    entries = {"id2label": {"0": "Unsafe", "1": "safe"}, "label2id": {"Unsafe": 0, "safe": 1}}
    tensors = {name: t.to(dtype) for name, t in head(2, bias=True).items()}
    source = write_foreign(tmp_path / "guard", tensors, entries, dtype=dtype)
    logits = hidden_states(source) @ tensors["score.weight"].float().T + tensors["score.bias"]
    found = read_foreign(source, "cost")
    assert found.label == "Unsafe"
    assert "minus" in found.about
    expected = logits[..., 0] - logits[..., 1]
    torch.testing.assert_close(converted(found, tmp_path / "out"), expected, rtol=0, atol=1e-5)
    turned = read_foreign(source, "reward", label="SAFE").weight
    torch.testing.assert_close(turned, -found.weight)


def test_which_of_two_labels_is_meant_must_be_known(tmp_path: Path) -> None:
    source = write_foreign(tmp_path, head(2), {})
    with pytest.raises(DataError, match=r"LABEL_0 and LABEL_1, and which is the harmful one"):
        read_foreign(source, "cost")
    with pytest.raises(DataError, match=r"--label \(bad\) is neither; give --label LABEL_1"):
        read_foreign(source, "cost", label="bad")
    assert read_foreign(source, "cost", label="label-1").label == "LABEL_1"
    entries = json.loads((source / "config.json").read_text())
    both = {"id2label": {"0": "reward", "1": "cost"}}
    (source / "config.json").write_text(json.dumps(entries | both))
    with pytest.raises(DataError, match=r"a reward and a cost head.* and no equilibrate_score"):
        read_foreign(source, "cost")
    one = write_scorer(tmp_path / "one")
    with pytest.raises(DataError, match=r"one label, so --label \(unsafe\) names nothing"):
        read_foreign(one, "cost", label="unsafe")


def test_ours_keeps_what_its_sidecar_says(tmp_path: Path) -> None:
    source = write_scorer(tmp_path / "ours")
    write_sidecar(source, ScorerSidecar(kind="cost", scale=2.0, bias=1.0, threshold=0.5))
    before = load_scorer(source, "cost", CPU)(TOKENS)
    found = read_foreign(source, "cost")
    torch.testing.assert_close(converted(found, tmp_path / "out"), before, rtol=0, atol=1e-5)
    assert read_heads(tmp_path / "out") == read_heads(source)
    with pytest.raises(DataError, match="must be 'reward'"):
        read_foreign(source, "reward")
    with pytest.raises(DataError, match="says what follows the head already"):
        read_foreign(source, "cost", normalize=False)


def test_shards_and_pickled_weights_are_read_as_they_are(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "rm", head(name="value_head"), {})
    expected = converted(read_foreign(source, "reward"), tmp_path / "whole")
    tensors = load_file(source / WEIGHT_FILE)
    names = sorted(tensors)
    parts = {"a": names[: len(names) // 2], "b": names[len(names) // 2 :]}
    for form, suffix in (("sharded", "safetensors"), ("pickled", "bin")):
        folder = tmp_path / form
        folder.mkdir()
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
        for part, own in parts.items():
            held = {name: tensors[name] for name in own}
            if suffix == "bin":
                torch.save(held, folder / f"{part}.bin")
            else:
                save_file(held, folder / f"{part}.safetensors", {"format": "pt"})
        index = {name: f"{part}.{suffix}" for part, own in parts.items() for name in own}
        place = INDEX_FILE if suffix == "safetensors" else "pytorch_model.bin.index.json"
        (folder / place).write_text(json.dumps({"weight_map": index}))
        scores = converted(read_foreign(folder, "reward"), tmp_path / f"{form}-out")
        written, whole = (
            {
                name: tensor
                for file in (tmp_path / out).glob("*.safetensors")
                for name, tensor in load_file(file).items()
            }
            for out in (f"{form}-out", "whole")
        )
        assert written.keys() == whole.keys()
        assert all(torch.equal(tensor, whole[name]) for name, tensor in written.items())
        # Where in memory a weight begins moves the last bit of a product on some processors.
        torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "entries", "message"),
    [
        ({}, {}, "holds no head that gives a score; a causal model has none"),
        (head(3), {}, r"shape \(3, 16\), and must have one label, or two"),
        (head(name="v_head.summary"), {}, r"none of the names known .* it is v_head\.summary"),
        (head() | {"lm_head.weight": torch.zeros(32, 16)}, {}, r"lm_head\.weight in the weights"),
        (head(name="score_head"), {"score_type": "critic"}, r"\(critic\) is no scorer"),
        (head(name="score_head"), {"score_type": "reward"}, "give --kind reward, or --negate"),
        (head(name="score_head"), BEAVER | {"var": [0.25, 1.0]}, "one finite number"),
        (head(name="value_head"), {"normalize_reward": True, "std": 0.0}, r"\(0\) must be > 0"),
        (head(name="value_head"), {"normalize_reward": True, "mean": math.nan}, "finite number"),
    ],
)
def test_what_is_no_scorer_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, torch.Tensor], entries: dict[str, Any], message: str
) -> None:
    source = write_foreign(tmp_path, tensors, entries)
    with pytest.raises(DataError, match=message) as error:
        read_foreign(source, "cost")
    assert str(source) in str(error.value)


def test_an_encoder_is_refused_by_name(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="head classifier is that of an encoder"):
        read_foreign(tmp_path, "cost")


def test_a_policy_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a causal model has none: train one"):
        read_foreign(write_policy(tmp_path), "cost")


@settings(max_examples=8, deadline=None)
@given(
    mean=st.floats(-5, 5),
    var=st.floats(0.01, 25),
    bias=st.floats(-3, 3),
    raw=st.floats(-10, 10),
    negate=st.booleans(),
)
def test_a_normaliser_is_folded_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    mean: float,
    var: float,
    bias: float,
    raw: float,
    negate: bool,
) -> None:
    folder = tmp_path_factory.mktemp("beaver")
    tensors = head(name="score_head") | {"score_head.bias": torch.tensor([bias])}
    entries = BEAVER | {"score_type": "reward", "mean": [mean], "var": [var]}
    kind: Any = "cost" if negate else "reward"
    sidecar = read_foreign(write_foreign(folder, tensors, entries), kind, negate=negate).sidecar
    expected = (raw + bias - mean) / (math.sqrt(var) + 1e-8)
    found = sidecar.scale * raw + sidecar.bias
    assert found == pytest.approx(-expected if negate else expected, abs=1e-5)
    assert not (folder / SIDECAR_FILE).exists()
