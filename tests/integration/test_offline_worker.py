"""Tokenizing, batching and the learning rate of the training before PPO; no cluster is started."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from actors.offline_worker import learning_rate
from equilibrate.data.sequences import Sequences, encode
from equilibrate.data.tables import COST_COLUMNS, SFT_COLUMNS, load_columns, read_labels
from equilibrate.errors import DataError
from equilibrate.offline.batches import encode_pairs, plan_batches, split_held_out
from equilibrate.offline.trainings import ScorerObjective, SftObjective
from equilibrate.preference.losses import cost_loss
from equilibrate.sandbox.model import build_model
from equilibrate.sandbox.tokenizer import build_tokenizer, encode_prompt, encode_response

TOKENIZER = build_tokenizer()
PAIR = {
    "prompt": "what is a item ?",
    "response_0": "that is fine .",
    "response_1": "that is a common item .",
}


def save(folder, rows):
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    Dataset.from_dict(columns).save_to_disk(str(folder))
    return folder


def test_rows_are_prompt_then_response_as_the_world_encodes_them():
    sequences = encode(TOKENIZER, ["what is a item ?"], ["that is fine ."], max_length=64)
    prompt = encode_prompt(TOKENIZER, "what is a item ?")
    assert sequences.flat.tolist() == prompt + encode_response(TOKENIZER, "that is fine .")
    assert sequences.prompt_lengths.tolist() == [len(prompt)]


def test_long_rows_are_cut():
    sequences = encode(TOKENIZER, ["what is a item ?"], ["that is fine ."], max_length=3)
    assert sequences.lengths.tolist() == [3]


def test_padded_rows_by_hand():
    # rows (5, 6), (7), (8, 9, 4): asking for the last and the middle one
    rows = Sequences(np.array([5, 6, 7, 8, 9, 4]), np.array([0, 2, 3, 6]), np.array([1, 1, 1]))
    ids, mask = rows.padded(np.array([2, 1]))
    assert ids.tolist() == [[8, 9, 4], [7, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert ids.dtype == torch.int64


def test_pairs_put_the_wanted_side_first_and_carry_its_sign():
    table = Dataset.from_dict({key: [value] * 2 for key, value in PAIR.items()})
    signs = np.array([[1, -1], [1, -1]], dtype=np.float32)
    pairs = encode_pairs(TOKENIZER, table, np.array([0, 1]), signs, max_length=64)
    first = len(encode_response(TOKENIZER, PAIR["response_0"]))
    second = len(encode_response(TOKENIZER, PAIR["response_1"]))
    prompt = pairs.high.prompt_lengths[0]
    assert (pairs.high.lengths - prompt).tolist() == [first, second]
    assert (pairs.low.lengths - prompt).tolist() == [second, first]
    assert pairs.signs.tolist() == [[1, -1], [-1, 1]]


def test_pairs_of_one_response_are_dropped_with_their_labels():
    same = PAIR | {"response_1": PAIR["response_0"]}
    table = Dataset.from_dict({key: [same[key], PAIR[key]] for key in PAIR})
    signs = np.array([[1, 1], [-1, 1]], dtype=np.float32)
    pairs = encode_pairs(TOKENIZER, table, np.array([0, 1]), signs, max_length=64)
    assert pairs.num_dropped == 1
    assert pairs.signs.tolist() == [[1, -1]]


def test_only_identical_pairs_are_refused():
    same = PAIR | {"response_1": PAIR["response_0"]}
    table = Dataset.from_dict({key: [value] for key, value in same.items()})
    with pytest.raises(DataError, match="same response twice"):
        encode_pairs(TOKENIZER, table, np.zeros(1, int), np.zeros((1, 2)), max_length=64)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    batch_size=st.integers(1, 16),
    num_batches=st.integers(1, 100),
)
def test_batches_are_full_and_each_row_comes_equally_often(lengths, batch_size, num_batches):
    batches = plan_batches(
        np.array(lengths), batch_size=batch_size, num_batches=num_batches, seed=3
    )
    assert [len(batch) for batch in batches] == [batch_size] * num_batches
    counts = np.bincount(np.concatenate(batches), minlength=len(lengths))
    assert counts.max() - counts.min() <= 1


def test_the_seed_fixes_the_batches():
    def plan(seed):
        lengths = np.arange(300) % 17 + 1
        return np.concatenate(plan_batches(lengths, batch_size=4, num_batches=100, seed=seed))

    assert plan(1).tolist() == plan(1).tolist()
    assert plan(1).tolist() != plan(2).tolist()


def test_batches_waste_little_and_are_no_curriculum():
    lengths = np.random.default_rng(0).integers(10, 40, size=4096)
    batches = plan_batches(lengths, batch_size=32, num_batches=128, seed=0)
    padded = sum(lengths[batch].max() * 32 for batch in batches)
    # 30 lengths over 64 sorted batches: most batches hold one or two neighbouring lengths.
    assert padded / lengths.sum() < 1.03
    means = np.array([lengths[batch].mean() for batch in batches[:64]])
    assert abs(np.corrcoef(means, np.arange(64))[0, 1]) < 0.3


def test_held_out_rows_are_a_twentieth_and_apart():
    train, held_out = split_held_out(200, fraction=0.05, seed=0)
    assert len(held_out) == 10
    assert sorted([*train, *held_out]) == list(range(200))


def test_one_pair_cannot_be_split():
    with pytest.raises(DataError, match="1 pair is too few"):
        split_held_out(1, fraction=0.05, seed=0)


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no data set here"):
        load_columns(tmp_path / "nowhere", SFT_COLUMNS)


def test_a_missing_column_is_named(tmp_path):
    folder = save(tmp_path / "pairs", [PAIR | {"safer_response_id": 0}])
    with pytest.raises(DataError, match=r"pairs: column 'is_response_0_safe' is missing"):
        load_columns(folder, COST_COLUMNS)


def test_an_empty_data_set_is_refused(tmp_path):
    Dataset.from_dict({"prompt": [], "response": []}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"none: the data set is empty"):
        load_columns(tmp_path / "none", SFT_COLUMNS)


def test_a_label_that_is_not_0_or_1_is_named(tmp_path):
    table = Dataset.from_dict({"better_response_id": [0, 1, 2]})
    with pytest.raises(DataError, match=r"row 2, better_response_id \(2\) must be 0 or 1"):
        read_labels(table, tmp_path, "better_response_id")


@pytest.mark.parametrize(
    ("step", "steps", "expected"),
    [
        (0, 1050, 0.02),  # first of 50 warm-up steps: 1 / 50
        (49, 1050, 1.0),  # last of them
        (50, 1050, 1.0),  # cosine of 0 of the other 1000
        (550, 1050, 0.5),  # half-way down: (1 + cos(pi / 2)) / 2
        (300, 1050, 0.5 + math.sqrt(0.125)),  # a quarter down: (1 + cos(pi / 4)) / 2
        (0, 8, 0.5),  # a quarter of a short run warms up: 2 steps
        (0, 1, 1.0),
    ],
)
def test_learning_rate_by_hand(step, steps, expected):
    assert learning_rate(step, steps=steps, peak=1.0) == pytest.approx(expected)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_model(TOKENIZER, seed=0).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    labels = {"safer_response_id": 0, "is_response_0_safe": True, "is_response_1_safe": False}
    row = PAIR | labels | {"better_response_id": 1}
    return save(tmp_path_factory.mktemp("pairs"), [row] * 20)


def make_scorer(kind, base, pairs, *, token_wise=True):
    options = {"token_wise": token_wise, "regularization": 0.0, "max_length": 64, "seed": 0}
    return ScorerObjective(kind, base, pairs, **options)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("reward", math.log(2)),  # -log sigma(0)
        ("cost", 3 * math.log(2)),  # the order of the pair and two signs
    ],
)
def test_a_head_of_zeros_gives_the_loss_of_knowing_nothing(base, pairs, kind, expected):
    objective = make_scorer(kind, base, pairs)
    objective.model.score.weight.data.zero_()
    loss = objective.loss(objective.module, np.arange(8), slice(None))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["reward", "cost"])
def test_the_shards_of_a_batch_add_up(base, pairs, kind):
    objective = make_scorer(kind, base, pairs)
    rows = np.arange(8)
    parts = [objective.loss(objective.module, rows, slice(rank, None, 3)) for rank in range(3)]
    whole = objective.loss(objective.module, rows, slice(None))
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-5)


def test_sequence_wise_looks_at_the_ends_only(base, pairs):
    """The scores that transformers itself computes for the two responses, in the published loss."""
    objective = make_scorer("cost", base, pairs, token_wise=False)
    ends = {
        name: objective.model(
            torch.tensor(
                [encode_prompt(TOKENIZER, PAIR["prompt"]) + encode_response(TOKENIZER, PAIR[name])]
            )
        ).logits[:, 0]
        for name in ("response_0", "response_1")
    }
    expected = cost_loss(
        ends["response_0"],
        ends["response_1"],
        torch.tensor([-1.0]),
        torch.tensor([1.0]),
        regularization=0.0,
        num_pairs=1,
    )
    loss = objective.loss(objective.module, np.arange(4), slice(None))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_sft_teaches_responses_and_no_prompts(base, tmp_path):
    row = {"prompt": PAIR["prompt"], "response": PAIR["response_0"]}
    objective = SftObjective(base, save(tmp_path / "sft", [row] * 2), max_length=64)
    prompt, response = (
        encode_prompt(TOKENIZER, row["prompt"]),
        encode_response(TOKENIZER, row["response"]),
    )
    ids = torch.tensor([prompt + response])
    log_probs = objective.model(ids).logits.log_softmax(-1)[0]
    expected = -sum(
        log_probs[len(prompt) - 1 + i, token].item() for i, token in enumerate(response)
    )
    loss = objective.loss(objective.module, np.arange(2), slice(None))
    assert loss.item() == pytest.approx(expected / len(response), rel=1e-5)
