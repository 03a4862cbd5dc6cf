"""The loss of scorers over a table of pairs, with a real small model where its scores matter."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.models.device import Accelerator
from equilibrate.models.new_scorer import HEAD_INIT_STD, new_scorer, new_twin_scorer
from equilibrate.offline.labelled import labelled_answers
from equilibrate.offline.scorer_loss import ScorerLoss, named_by_head
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer, encode_prompt
from tests.fakes import encode_response

TOKENIZER = build_tokenizer()
CPU = Accelerator("cpu", "float32")
ROW = {
    "prompt": "what is a item ?",
    "response_0": "that is fine .",
    "response_1": "that is a common item .",
    "better_response_id": 1,
    "safer_response_id": 0,
    "is_response_0_safe": True,
    "is_response_1_safe": False,
}
NUM_PAIRS = 8
ALL = np.arange(NUM_PAIRS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_model(TOKENIZER, seed=0).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def made(base, kind, *, token_wise=True):
    """Loss and model of a scorer that is to learn eight equal pairs."""
    tree = {
        "objective": {"type": kind, "token_wise": token_wise, "regularization": 0.0},
        "data": {"policy": str(base), "train": "unused"},
    }
    config = parse_settings(FitConfig, tree)
    table = labelled_answers(
        config, {name: [value] * NUM_PAIRS for name, value in ROW.items()}, base
    )
    pad = TOKENIZER.pad_token_id
    if kind == "scorer":
        model = new_twin_scorer(base, ("reward", "cost"), CPU, seed=0, pad_token_id=pad)
    else:
        model = new_scorer(base, kind, CPU, seed=0, pad_token_id=pad)
    return ScorerLoss(table, config, torch.device("cpu")), model


def test_answers_are_cut_where_the_positions_of_their_model_end(tmp_path):
    # A config as of GPT-2, which has a word of its own for them.
    (tmp_path / "config.json").write_text('{"n_positions": 13}')
    TOKENIZER.save_pretrained(tmp_path)
    tree = {"objective": {"type": "cost"}, "data": {"policy": str(tmp_path), "train": "unused"}}
    config = parse_settings(FitConfig, tree)
    table = labelled_answers(config, {name: [value] for name, value in ROW.items()}, tmp_path)
    assert table.sequences.lengths.tolist() == [13, 12]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("reward", math.log(2)),  # -log sigma(0)
        ("cost", 3 * math.log(2)),  # the order of the pair and two signs
        ("scorer", 4 * math.log(2)),
    ],
)
def test_a_head_of_zeros_gives_the_loss_of_knowing_nothing(base, kind, expected):
    loss, model = made(base, kind)
    torch.nn.init.zeros_(model.model.score.weight)
    assert loss.loss(model, loss.plan(ALL), ALL).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["reward", "cost", "scorer"])
def test_the_parts_of_a_batch_add_up(base, kind):
    loss, model = made(base, kind)
    plan = loss.plan(ALL)
    parts = [loss.loss(model, plan, ALL[rank::3]) for rank in range(3)]
    whole = loss.loss(model, plan, ALL)
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-5)


def own_scores(base, model) -> dict[str, torch.Tensor]:
    """What transformers itself says of the two whole answers."""
    prompt = encode_prompt(TOKENIZER, ROW["prompt"])
    return {
        name: model.model(torch.tensor([prompt + encode_response(TOKENIZER, ROW[name])])).logits[
            :, 0
        ]
        for name in ("response_0", "response_1")
    }


def test_sequence_wise_looks_at_the_ends_only(base):
    """The scores that transformers computes for the two responses, in the published loss."""
    loss, model = made(base, "cost", token_wise=False)
    ends = own_scores(base, model)
    safe, unsafe = ends["response_0"].item(), ends["response_1"].item()
    # Order of the pair, and each answer on its side of 0.
    expected = sum(math.log1p(math.exp(-x)) for x in (unsafe - safe, -safe, unsafe))
    found = loss.loss(model, loss.plan(ALL), ALL)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_first_score_is_that_of_the_more_harmful_answer(base):
    loss, model = made(base, "cost")
    ends = own_scores(base, model)
    scores = loss.end_scores(model, ALL[:1])
    assert scores[:, 0].tolist() == pytest.approx(
        [ends["response_1"].item(), ends["response_0"].item()]
    )


@pytest.mark.parametrize("token_wise", [True, False])
def test_two_heads_learn_what_two_models_would(base, token_wise):
    """In `ROW` the better answer is the less safe one: their orders differ, or not in its swap."""
    loss, twins = made(base, "scorer", token_wise=token_wise)
    found = loss.loss(twins, loss.plan(ALL), ALL)
    expected = 0.0
    for head, kind in enumerate(("reward", "cost")):
        own, model = made(base, kind, token_wise=token_wise)
        model.model.score.weight.data = twins.model.score.weight.data[head : head + 1]
        expected += own.loss(model, own.plan(ALL), ALL).item()
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_each_head_is_calibrated_by_its_own_order(base):
    loss, _ = made(base, "scorer")
    # The first answer, the better one and unsafe, scores 2 and 3, the other one -1 and 1.
    found = loss.calibrations(np.array([[2.0, 3.0], [-1.0, 1.0]] * NUM_PAIRS), ALL)
    assert found["reward"]["ranking_accuracy"] == found["cost"]["ranking_accuracy"] == 1.0
    assert (found["reward"]["better_mean"], found["reward"]["worse_mean"]) == (2.0, -1.0)
    assert (found["cost"]["unsafe_mean"], found["cost"]["safe_mean"]) == (3.0, 1.0)
    assert named_by_head(found)["cost_sign_accuracy"] == 0.5
    assert named_by_head({"cost": found["cost"]}) == found["cost"]


def test_the_safer_answer_may_be_the_better_one(base, monkeypatch):
    monkeypatch.setitem(ROW, "better_response_id", 0)
    loss, _ = made(base, "scorer")
    # The first answer, better and safe, scores 2 by help and -1 by harm.
    found = loss.calibrations(np.array([[2.0, -1.0], [1.0, 3.0]] * NUM_PAIRS), ALL)
    assert found["reward"]["ranking_accuracy"] == found["cost"]["ranking_accuracy"] == 1.0
    assert (found["cost"]["unsafe_mean"], found["cost"]["safe_mean"]) == (3.0, -1.0)


def test_a_fresh_head_is_drawn_by_the_seed_alone(base):
    torch.manual_seed(1)
    one, two, other = (
        new_scorer(base, "cost", CPU, seed=seed, pad_token_id=0).model.score.weight
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(HEAD_INIT_STD, rel=0.2)


def test_a_fresh_scorer_is_an_ordinary_folder(base, tmp_path):
    model = new_scorer(base, "reward", CPU, seed=0, pad_token_id=TOKENIZER.pad_token_id)
    model.model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)("that is fine .")["input_ids"]])
    assert torch.equal(again(ids).logits[0, 0], model(ids)[0, -1])


def singles(base, **settings):
    """Loss and model of a cost model that is to learn two answers, labelled one by one."""
    tree = {
        "objective": {"type": "cost", "regularization": 0.0, **settings},
        "data": {"policy": str(base), "train": "unused"},
    }
    config = parse_settings(FitConfig, tree)
    columns = {
        "prompt": [ROW["prompt"]] * 2,
        "response": [ROW["response_0"], ROW["response_1"]],
        "is_safe": [True, False],
    }
    table = labelled_answers(config, columns, base)
    model = new_scorer(base, "cost", CPU, seed=0, pad_token_id=TOKENIZER.pad_token_id)
    return ScorerLoss(table, config, torch.device("cpu")), model, table


@pytest.mark.parametrize("token_wise", [True, False])
def test_answers_labelled_one_by_one_teach_their_sign(base, token_wise):
    loss, model, table = singles(base, token_wise=token_wise)
    both = np.arange(2)
    assert len(table) == 2
    scores = [model(torch.tensor(ids)[None])[0] for ids in
              np.split(table.sequences.flat, table.sequences.starts[1:-1])]  # fmt: skip
    expected = 0.0
    for own, start, sign in zip(scores, table.learn_starts, (-1.0, 1.0), strict=True):
        own = own[start:] if token_wise else own[-1:]
        expected += torch.nn.functional.softplus(-sign * own).mean().item() / 2
    assert loss.loss(model, loss.plan(both), both).item() == pytest.approx(expected, rel=1e-5)
    ends = loss.end_scores(model, both)
    assert ends[:, 0].tolist() == pytest.approx([own[-1].item() for own in scores], abs=1e-6)
