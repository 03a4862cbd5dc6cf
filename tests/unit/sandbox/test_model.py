"""The fresh policy is an ordinary Llama folder."""

import torch
from transformers import AutoModelForCausalLM

from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


def test_shape():
    model = build_model(TOKENIZER, seed=0)
    assert model.config.head_dim == 32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    # 128 x vocabulary + 4 x (4 x 128^2 + 3 x 128 x 344 + 2 x 128) + 128
    expected = 128 * len(TOKENIZER) + 4 * (4 * 128**2 + 3 * 128 * 344 + 2 * 128) + 128
    assert sum(p.numel() for p in model.parameters()) == expected


def test_seed_decides_the_weights_and_global_state_is_left_alone():
    before = torch.random.get_rng_state()
    first, same, other = (build_model(TOKENIZER, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], same[name]) for name in first)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(first[name], other[name])


def test_folder_round_trip(tmp_path):
    model = build_model(TOKENIZER, seed=0).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[2, 10, 11, 4]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(ids).logits)
