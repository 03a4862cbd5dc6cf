from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from equilibrate.errors import DataError
from equilibrate.models.device import Accelerator, Dtype
from equilibrate.models.loading import load_policy, load_scorer, load_twin_scorer
from equilibrate.models.log_probs import token_entropies, token_log_probs
from equilibrate.models.new_scorer import new_scorer, new_twin_scorer
from equilibrate.models.policy import PolicyModel, is_head_linear
from equilibrate.models.scorer import ScoreModel, TwinScoreModel
from equilibrate.models.sidecar import ScorerSidecar, write_sidecar
from tests.unit.models.toys import CONFIGS, causal_model, write_policy

CPU = Accelerator("cpu", "float32")


class CappedHead(nn.Module):
    """A model whose logits are more than a linear head: each is squeezed into (-1, 1)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model, self.head = model.base_model, model.get_output_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        hidden = self.base_model(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        return SimpleNamespace(logits=torch.tanh(self.head(hidden)))


def make_llama(*, tied: bool) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


def test_head_is_tried_out() -> None:
    assert is_head_linear(make_llama(tied=True))
    assert is_head_linear(make_llama(tied=False))
    assert not is_head_linear(CappedHead(make_llama(tied=False)))


def test_a_cap_is_found_where_logits_are_still_small() -> None:
    # 30 tanh(x / 30) is x to 1e-8 as long as |x| < 0.01, and is not once the model is trained.
    model = causal_model("gemma2")
    assert model(torch.tensor([[3, 4]])).logits.abs().max() < 1
    assert not is_head_linear(model)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    assert not is_head_linear(model)
    model.config.final_logit_softcapping = None
    assert is_head_linear(model)


@pytest.mark.parametrize("is_capped", [False, True])
def test_log_probs_and_entropies_are_those_of_the_logits(is_capped: bool) -> None:
    model = make_llama(tied=True)
    model = CappedHead(model) if is_capped else model
    token_ids = torch.randint(11, (3, 6))
    mask = torch.rand(3, 6) < 0.5
    policy = PolicyModel(model, Accelerator("cpu", "float32"))
    log_probs, entropies = policy(token_ids, mask, 0.7, 1)
    logits = model(input_ids=token_ids, use_cache=False).logits
    for rows, temperature in ((slice(2), 0.7), (slice(2, 3), 1.0)):
        for found, function in ((log_probs, token_log_probs), (entropies, token_entropies)):
            whole = function(logits[rows], token_ids[rows], temperature=temperature)
            wanted = torch.where(mask[rows], whole, 0.0)
            torch.testing.assert_close(found[rows], wanted, rtol=1e-5, atol=1e-6)


def test_narrow_head_multiplies_narrow_numbers() -> None:
    model = make_llama(tied=True)
    wide, narrow = (PolicyModel(model, Accelerator("cpu", d)) for d in ("float32", "bfloat16"))
    token_ids, mask = torch.randint(11, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    exact, rounded = wide(token_ids, mask, 1.0)[0], narrow(token_ids, mask, 1.0)[0]
    assert rounded.dtype == torch.float32
    assert 0 < float((exact - rounded).detach().abs().max()) < 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_is_differentiated_in_float32_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Dtype
) -> None:
    make_llama(tied=True).save_pretrained(tmp_path / "model")
    policy = load_policy(tmp_path / "model", Accelerator("cpu", dtype))
    seen = []

    def spy(query: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        states = attend(query, *others, **options)
        seen.append((states.dtype, options["is_causal"]))
        return states

    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    policy(torch.randint(11, (2, 6)), torch.ones(2, 6, dtype=torch.bool), 1.0)
    assert set(seen) == {(torch.float32, True)}
    # What is exported names nothing of ours.
    policy.model.save_pretrained(tmp_path / "exported")
    assert "sdpa_float32" not in (tmp_path / "exported" / "config.json").read_text()


class Backbone(nn.Module):
    """Hidden state of a token: its id and 1."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Backbone:
        self.last_hidden_state = torch.stack([input_ids.float(), torch.ones(input_ids.shape)], -1)
        return self


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_model = Backbone()
        self.score = nn.Linear(2, 1, bias=False)
        self.score.weight.data = torch.tensor([[1.0, 10.0]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_position_is_scored_in_the_units_of_the_sidecar(dtype: str) -> None:
    sidecar = ScorerSidecar(kind="cost", scale=-2.0, bias=3.0, threshold=1.0)
    scorer = ScoreModel(Scorer(), sidecar, Accelerator("cpu", dtype))  # type: ignore[arg-type]
    scores = scorer(torch.tensor([[4, 5]]))
    # head 4 + 10 = 14 and 15; -2 * head + 3 - 1
    assert scores.tolist() == [[-26.0, -28.0]]
    assert scores.dtype == torch.float32


def write_twins(folder: Path, *heads: ScorerSidecar) -> TwinScoreModel:
    """A new model of several heads, and its folder beside one of its base."""
    base = write_policy(folder / "base", "llama")
    twins = new_twin_scorer(base, [head.kind for head in heads], CPU, seed=0, pad_token_id=0)
    twins.model.save_pretrained(folder / "twins")
    write_sidecar(folder / "twins", *heads)
    return twins


def test_each_head_of_two_is_a_scorer_of_its_own(tmp_path: Path) -> None:
    cost = ScorerSidecar(kind="cost", scale=2.0, bias=1.0, threshold=0.5)
    twins = write_twins(tmp_path, ScorerSidecar(kind="reward"), cost)
    token_ids = torch.tensor([[3, 9, 4, 20]])
    with torch.no_grad():
        fresh = twins(token_ids)
        both = load_twin_scorer(tmp_path / "twins", ("reward", "cost"), CPU)(token_ids)
        single = {
            kind: load_scorer(tmp_path / "twins", kind, CPU)(token_ids)
            for kind in ("reward", "cost")
        }
    assert both.shape == (1, 4, 2)
    torch.testing.assert_close(both[..., 0], fresh[..., 0])
    torch.testing.assert_close(both[..., 1], 2.0 * fresh[..., 1] + 0.5)
    torch.testing.assert_close(single["reward"], both[..., 0])
    torch.testing.assert_close(single["cost"], both[..., 1])
    assert not torch.allclose(both[..., 0], both[..., 1])


def test_heads_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    cost = ScorerSidecar(kind="cost", scale=2.0)
    write_twins(tmp_path, cost, ScorerSidecar(kind="reward"))
    token_ids = torch.tensor([[3, 9, 4, 20]])
    with torch.no_grad():
        as_written = load_twin_scorer(tmp_path / "twins", ("cost", "reward"), CPU)
        turned = load_twin_scorer(tmp_path / "twins", ("reward", "cost"), CPU)
        torch.testing.assert_close(turned(token_ids), as_written(token_ids).flip(-1))
    assert turned.model.config.id2label == {0: "reward", 1: "cost"}


def test_a_head_taken_out_is_an_ordinary_scorer(tmp_path: Path) -> None:
    write_twins(tmp_path, ScorerSidecar(kind="reward"), ScorerSidecar(kind="cost"))
    cost = load_scorer(tmp_path / "twins", "cost", CPU)
    cost.model.save_pretrained(tmp_path / "cost")
    write_sidecar(tmp_path / "cost", ScorerSidecar(kind="cost"))
    again = load_scorer(tmp_path / "cost", "cost", CPU)
    token_ids = torch.tensor([[3, 9]])
    with torch.no_grad():
        torch.testing.assert_close(again(token_ids), cost(token_ids))


def test_a_sidecar_of_another_number_of_heads_is_refused(tmp_path: Path) -> None:
    write_twins(tmp_path, ScorerSidecar(kind="reward"), ScorerSidecar(kind="cost"))
    new_scorer(tmp_path / "base", "cost", CPU, seed=0, pad_token_id=0).model.save_pretrained(
        tmp_path / "one"
    )
    write_sidecar(tmp_path / "one", ScorerSidecar(kind="reward"), ScorerSidecar(kind="cost"))
    with pytest.raises(DataError, match=r"num_labels \(1\) must be 2, as many as"):
        load_scorer(tmp_path / "one", "cost", CPU)
    write_sidecar(tmp_path / "twins", ScorerSidecar(kind="cost"))
    with pytest.raises(DataError, match=r"num_labels \(2\) must be 1"):
        load_scorer(tmp_path / "twins", "cost", CPU)


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
